// SPDX-License-Identifier: Apache-2.0
// A trained tensor: its value, its gradient, the name it has in a checkpoint and who owns it.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {

// How a parameter starts. normal: N(0, scale) keyed by (seed, name, element), so it does not depend on placement.
struct Init {
  enum class Kind { zeros, ones, normal };
  Kind kind = Kind::zeros;
  double scale = 0.0;
};

// shared: every rank holds it, gradients are summed over the data-parallel group.
// expert: only the ranks that own the expert hold it, gradients are summed over the expert-data-parallel group and over
// the replicas of the expert.
// buffer: not trained by gradient (the selection bias), but saved.
enum class Placement { shared, expert, buffer };

// A row range of a fused parameter that has a name of its own in files (gate_proj and up_proj are one [2F,H] here).
struct ParameterPart {
  std::string name;
  int64_t first_row;
  int64_t num_rows;
};

// What a back end keeps beside a weight (packed or converted copies). Rebuilt when `version` moved on.
struct PackedWeight {
  virtual ~PackedWeight() = default;
};

struct Parameter {
  std::vector<ParameterPart> parts;  // at least one; together they cover all rows
  std::vector<std::string> copies;   // names under which files hold the whole value once more; never read
  Placement placement = Placement::shared;
  Init init;
  bool is_copy = false;  // of a parameter of that name in another stage, which is saved and counted in its place
  bool decay = true;     // weight decay applies (not to norms and biases)
  // Of an expert's: the ranks of the expert-parallel group that hold it, ascending. Where there are several, their
  // gradients are summed too; the first saves it and counts it. None: this rank alone.
  std::vector<int> holders = {};

  // `value` has its shape from the start and its memory from a ParameterStore. `grad` stays undefined for buffers and
  // for inference.
  Tensor value;
  Tensor grad;
  bool frozen = false;       // a stage of training that leaves it as it is: no gradient is made, no update done
  bool grad_is_zero = true;  // the next weight gradient may overwrite instead of add

  uint64_t version = 0;  // moves on whenever `value` changes
  mutable std::unique_ptr<PackedWeight> packed;

  const std::string& name() const { return parts.front().name; }
};

using ParameterVisitor = std::function<void(Parameter&)>;

// A weight [sum of rows, width] of normal values, made of row ranges {name, rows} in this order.
Parameter make_weight(std::initializer_list<std::pair<std::string, int64_t>> parts, int64_t width, double init_std,
                      Placement placement = Placement::shared);
// A vector [size] without weight decay: the gain or offset of a norm, a bias.
Parameter make_vector(std::string name, int64_t size, Init::Kind init, Placement placement = Placement::shared);

}  // namespace cadre
