// SPDX-License-Identifier: Apache-2.0
// Watches over a whole run whether the experts were used evenly, and in the end says which option to change.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/observe/step_metrics.hpp"

namespace cadre {

class BalanceAlarm {
 public:
  // Means over the steps. MaxVio 1: the busiest expert of a step has twice the mean load.
  static constexpr double kMaxVioLimit = 1.0;
  static constexpr double kDeadExpertsLimit = 1.0;

  void add(const GlobalStep& step);
  // "NOTE: ..." in one line; empty while both means are within their limits.
  std::string note() const;

 private:
  int64_t num_steps_ = 0;
  double max_vio_sum_ = 0.0;
  int64_t dead_sum_ = 0;
};

}  // namespace cadre
