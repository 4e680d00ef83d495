// SPDX-License-Identifier: Apache-2.0
// The learning rate at the points that define each schedule.
#include "runtime/optim/lr_schedule.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace cadre::lr_schedule_test {
namespace {

TrainConfig train(const std::string& schedule) {
  TrainConfig config;
  config.steps = 100;
  config.learning_rate = 1.0;
  config.min_learning_rate = 0.1;
  config.schedule = schedule;
  config.warmup_steps = 20;
  config.decay_steps = 40;
  return config;
}

// A few roundings of numbers below 1.
constexpr double kTolerance = 1e-14;

TEST(LrSchedule, WarmsUpLinearlyToThePeak) {
  for (const char* schedule : {"cosine", "linear", "constant", "wsd"}) {
    const TrainConfig config = train(schedule);
    EXPECT_NEAR(learning_rate_at(config, 0), 0.05, kTolerance) << schedule;
    EXPECT_NEAR(learning_rate_at(config, 9), 0.5, kTolerance) << schedule;
    EXPECT_NEAR(learning_rate_at(config, 19), 1.0, kTolerance) << schedule;
  }
}

TEST(LrSchedule, DecaysToTheMinimumAtTheLastStep) {
  for (const char* schedule : {"cosine", "linear", "wsd"}) {
    const TrainConfig config = train(schedule);
    EXPECT_NEAR(learning_rate_at(config, 99), 0.1, kTolerance) << schedule;
    EXPECT_NEAR(learning_rate_at(config, 1000), 0.1, kTolerance) << schedule;
    for (int64_t step = 20; step < 100; ++step) {
      EXPECT_LE(learning_rate_at(config, step), learning_rate_at(config, step - 1)) << schedule << " " << step;
    }
  }
}

TEST(LrSchedule, PassesThePointsBetween) {
  // t = step + 1 = 40 and 60: a quarter and half of the way from 20 to 100.
  EXPECT_NEAR(learning_rate_at(train("linear"), 39), 0.1 + 0.9 * 0.75, kTolerance);
  EXPECT_NEAR(learning_rate_at(train("linear"), 59), 0.1 + 0.9 * 0.5, kTolerance);
  EXPECT_NEAR(learning_rate_at(train("cosine"), 39), 0.1 + 0.9 * (0.5 + std::sqrt(2.0) / 4), kTolerance);
  EXPECT_NEAR(learning_rate_at(train("cosine"), 59), 0.1 + 0.9 * 0.5, kTolerance);
  // wsd: flat until t = 60, then half of the way down at t = 80.
  EXPECT_NEAR(learning_rate_at(train("wsd"), 59), 1.0, kTolerance);
  EXPECT_NEAR(learning_rate_at(train("wsd"), 60), 1.0 - 0.9 / 40, kTolerance);
  EXPECT_NEAR(learning_rate_at(train("wsd"), 79), 0.55, kTolerance);
  EXPECT_EQ(learning_rate_at(train("constant"), 99), 1.0);
}

TEST(LrSchedule, WorksAtTheEdges) {
  TrainConfig config = train("cosine");
  config.warmup_steps = 0;
  EXPECT_LT(learning_rate_at(config, 0), 1.0);
  EXPECT_GT(learning_rate_at(config, 0), 0.99);
  config.steps = 1;
  EXPECT_NEAR(learning_rate_at(config, 0), 0.1, kTolerance);
  config.warmup_steps = 1;  // nothing but warm-up
  EXPECT_EQ(learning_rate_at(config, 0), 1.0);
  EXPECT_NEAR(learning_rate_at(config, 1), 0.1, kTolerance);
}

}  // namespace
}  // namespace cadre::lr_schedule_test
