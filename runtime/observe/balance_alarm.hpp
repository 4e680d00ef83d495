// SPDX-License-Identifier: Apache-2.0
// Watches over a run whether experts and ranks are used evenly and whether slots are dropped, and says which option to
// change: as soon as a window of steps is beyond a limit, and at the end for the whole run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/observe/step_metrics.hpp"

namespace cadre {

class BalanceAlarm {
 public:
  // Means over the steps of a window or a run. MaxVio 1: the busiest expert of a step has twice the mean load.
  static constexpr double kMaxVioLimit = 1.0;
  static constexpr double kDeadExpertsLimit = 1.0;
  static constexpr double kDeviceLimit = 1.5;  // max / mean over the ranks
  static constexpr double kDropRateLimit = 0.01;
  // Steps of a window. After an alarm of one kind, the same is silent for kQuietWindows.
  static constexpr int64_t kWindow = 50;
  static constexpr int64_t kQuietWindows = 10;

  // Lines to be shown now: none but where a window ends. `step` counts from 1.
  std::vector<std::string> add(int64_t step, const GlobalStep& global);
  // Of the whole run: "NOTE: ..." in one line; empty while the means over experts are within their limits.
  std::string note() const;

 private:
  struct Means {
    int64_t steps = 0;
    double max_vio = 0.0;  // sums until `steps` divides them
    double dead = 0.0;
    double device_max_over_mean = 0.0;
    double drop_rate = 0.0;

    void add(const GlobalStep& global);
    double mean(double sum) const { return sum / static_cast<double>(steps); }
  };

  Means run_;
  Means window_;
  int64_t windows_ = 0;
  int64_t quiet_until_[3] = {0, 0, 0};  // windows; of experts, ranks, drops
};

}  // namespace cadre
