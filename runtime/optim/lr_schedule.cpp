// SPDX-License-Identifier: Apache-2.0
#include "runtime/optim/lr_schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// How far t is from `begin` to `end`, in [0, 1].
double progress(int64_t t, int64_t begin, int64_t end) {
  if (t >= end) return 1.0;
  return static_cast<double>(std::max<int64_t>(t - begin, 0)) / static_cast<double>(end - begin);
}

// The share of (peak - minimum) that is left.
double remaining(const TrainConfig& config, int64_t t) {
  if (config.schedule == "constant") return 1.0;
  if (config.schedule == "wsd") return 1.0 - progress(t, config.steps - config.decay_steps, config.steps);
  const double done = progress(t, config.warmup_steps, config.steps);
  if (config.schedule == "linear") return 1.0 - done;
  CADRE_CHECK(config.schedule == "cosine", "no schedule has the name " + config.schedule);
  return 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace

double learning_rate_at(const TrainConfig& config, int64_t step) {
  const int64_t t = step + 1;
  if (t <= config.warmup_steps) {
    return config.learning_rate * static_cast<double>(t) / static_cast<double>(config.warmup_steps);
  }
  return config.min_learning_rate + remaining(config, t) * (config.learning_rate - config.min_learning_rate);
}

}  // namespace cadre
