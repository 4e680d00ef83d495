// SPDX-License-Identifier: Apache-2.0
// Where the NaN or the infinity of a step came up first: the step is run once more, on each rank for itself as far as
// gradients go, and everything is looked at in the order in which it is made.
#pragma once

#include <functional>
#include <string>

#include "runtime/parallel/executor.hpp"

namespace cadre {

struct NonFinite {
  std::string what;         // "rank 2: the output of the experts of layer 1 is not finite"
  bool in_weights = false;  // so that no later step can be better
};

// Collective over the world; the same on all ranks. Repeats `work`, whose values must not have changed; gradients and the
// statistics of routers are of no use afterwards.
NonFinite find_non_finite(Worker& worker, Executor& executor, StepWork work);

}  // namespace cadre
