// SPDX-License-Identifier: Apache-2.0
// What a machine was measured to do, as a value and as a TOML file: the rate of each kind of work of a rank and the cost of
// links. `cadre plan cluster` and parallel.schedule = auto measure it; a file may be written by hand for a machine that is
// elsewhere.
#pragma once

#include <string>
#include <vector>

#include "comm/base/fields.hpp"
#include "comm/exchange/choose.hpp"

namespace cadre {

// GFLOP/s of a kind of product in its three directions, with the vector work around the products (norms, activations,
// softmax) in the time.
struct ProductRate {
  double forward = 0.0;
  double input_grad = 0.0;
  double weight_grad = 0.0;

  bool operator==(const ProductRate&) const = default;
};

// Products of experts by their size.
struct ExpertRate {
  double rows = 0.0;  // of each expert
  ProductRate rate = {};

  bool operator==(const ExpertRate&) const = default;
};

// All rates are of one rank while all ranks of its host work.
struct Machine {
  double peak = 0.0;  // GFLOP/s that MFU is a part of; 0: the largest of the rates

  ProductRate attention, router, shared_experts, dense, head;
  std::vector<ExpertRate> experts;  // by rows, ascending

  // GB/s of work that memory limits. Rows are counted as they lie in memory, 4 bytes an element.
  double embedding = 0.0;      // rows of the embedding, forward and backward together
  double dispatch = 0.0;       // rows packed for the experts, once for each rank that needs one
  double combine = 0.0;        // rows added at experts and again at tokens
  double combine_grad = 0.0;   // as dispatch, in backward
  double dispatch_grad = 0.0;  // as combine, in backward
  double reduction = 0.0;      // gradients that are added to a sum
  double gradient_norm = 0.0;  // gradients that are read
  double update = 0.0;         // parameters that the optimiser updates
  double repack = 0.0;         // weights that products copy for themselves after an update

  LinkCost host;     // messages between ranks of a host, all at once
  LinkCost network;  // between hosts; zero: there is one host

  // Of products of experts with so many rows each: interpolated between the sizes that are known.
  ProductRate experts_with(double rows) const;
  double peak_gflops() const;

  bool operator==(const Machine&) const = default;
};

// Reads a file that to_toml wrote or a person. Throws ErrorKind::input with file, line and key for anything that is missing,
// unknown or out of range.
Machine read_machine(const std::string& path);
Machine parse_machine(const std::string& toml, const std::string& where);
std::string to_toml(const Machine& machine);

}  // namespace cadre
