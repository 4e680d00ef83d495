// SPDX-License-Identifier: Apache-2.0
// How far a run has come.
#pragma once

#include <cstdint>

#include "runtime/data/order.hpp"

namespace cadre {

struct TrainProgress {
  int64_t step = 0;  // optimiser steps done
  int64_t tokens_seen = 0;
  DataPosition data = {};  // of the next step

  bool operator==(const TrainProgress&) const = default;
};

}  // namespace cadre
