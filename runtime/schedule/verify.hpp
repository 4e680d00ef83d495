// SPDX-License-Identifier: Apache-2.0
// Proves a program before anything runs it.
#pragma once

#include <vector>

#include "runtime/schedule/program.hpp"

namespace cadre {

// Of each rank.
struct Footprint {
  // Forwards whose saved activations are held at once. A full backward frees them, a split one with its weight gradient.
  std::vector<int> peak_live_forwards;
  // Weight gradients that wait at once.
  std::vector<int> peak_deferred_weights;
};

// Proves that
//   - every micro-batch runs forward and backward once at each stage, on the rank that holds it, the backward after the
//     forward, and a weight gradient once after each split backward and after no other;
//   - all that needs rows from another rank has one receive posted before it, and the other rank one send behind the op
//     that makes them, each with the right peer;
//   - every rank gets to the end of its list, with sends that do not wait and with sends that wait for their receive.
// Throws an Error that names rank, position and op where one of these fails.
Footprint verify(const Program& program);

// How much of a program is under way at once on each rank: what its memory depends on.

struct Concurrency {
  int lanes = 0;  // micro-batches between the begin of their forward pass and the end of their weight gradients
  int works =
      0;  // of them, those in a pass, or between the begin of their backward pass and the end of their weight gradients
  int passes = 1;       // that run side by side
  bool defers = false;  // weight gradients run after their pass
};

// Of each rank. Forward passes count as works where layers are computed again, because only then they keep less than they compute.
// Pure.
std::vector<Concurrency> concurrency_of(const Program& program, bool recomputes);
// Of the rank that has most.
int most_lanes(const std::vector<Concurrency>& of_rank);

}  // namespace cadre
