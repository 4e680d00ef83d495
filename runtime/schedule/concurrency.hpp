// SPDX-License-Identifier: Apache-2.0
// How much of a program is under way at once on each rank: what its memory depends on.
#pragma once

#include <vector>

#include "runtime/schedule/program.hpp"

namespace cadre {

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
