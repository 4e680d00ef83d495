// SPDX-License-Identifier: Apache-2.0
// The schedule that auto takes, and the note on a forecast that was wrong.
#include "runtime/train/schedule_choice.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/plan/predict_step.hpp"
#include "tests/support/planned_run.hpp"

namespace cadre::schedule_choice_test {
namespace {

using test::machine_of_tens;
using test::small_run;
using ::testing::HasSubstr;

// A slow link: what a pair hides is worth more than what it costs. A link that takes no time: nothing is gained.
TEST(ChooseSchedule, takes_the_fastest_and_says_why) {
  RunConfig config = small_run();
  config.parallel.schedule = "auto";
  Machine machine = machine_of_tens();
  const Topology two_hosts = Topology::uniform(2, 1);
  const ScheduleChoice slow = choose_schedule(config, two_hosts, machine);
  EXPECT_EQ(slow.schedule, "pair");
  EXPECT_TRUE(slow.overlap);
  EXPECT_THAT(slow.reason, HasSubstr("schedule pair: predicted ms a step: serial"));
  machine.network = {0.0, 0.0};
  const ScheduleChoice fast = choose_schedule(config, two_hosts, machine);
  EXPECT_EQ(fast.schedule, "1f1b");
  for (const ScheduleChoice* choice : {&slow, &fast}) EXPECT_GT(choice->forecast.step_s, 0.0);
}

// Never slower than serial by prediction, whatever the machine is.
TEST(ChooseSchedule, is_not_slower_than_serial) {
  RunConfig config = small_run();
  config.model.num_hidden_layers = 4;
  config.parallel.schedule = "auto";
  for (const int pipeline : {1, 2}) {
    config.parallel.pipeline = pipeline;
    config.train.micro_batches = 4;
    for (const double alpha : {0.0, 1e-6, 1e-3}) {
      for (const double beta : {0.0, 1e-9, 1e-6}) {
        Machine machine = machine_of_tens();
        machine.network = {alpha, beta};
        const Topology topology = Topology::uniform(4, 1);
        const ScheduleChoice choice = choose_schedule(config, topology, machine);
        RunConfig serial = config;
        serial.parallel.schedule = "1f1b";
        const double limit = predict_step(shape_step(serial, topology, machine), 1.0, /*overlap=*/false).step_s;
        EXPECT_LE(choice.forecast.step_s, limit * (1 + 1e-12)) << choice.reason;
      }
    }
  }
}

TEST(ForecastCheck, speaks_where_a_forecast_is_more_than_a_tenth_off) {
  const auto note_of = [](double step_s, double serial_s) {
    ForecastCheck check({.step_s = 1.0, .serial_passes_s = 2.0}, /*steps_left=*/10);
    int step = 0;
    for (const double seconds : {9.0, step_s, 2.0 * step_s, step_s}) {
      EXPECT_EQ(check.wants_serial_step(), ++step == 4);
      check.add(seconds);
    }
    return check.conclude(serial_s);
  };
  EXPECT_EQ(note_of(1.05, 2.1), "");
  EXPECT_THAT(note_of(1.25, 2.0), HasSubstr("predicted 1000.0 ms a step, measured 1250.0 (-20 %)"));
  EXPECT_THAT(note_of(1.0, 1.6), HasSubstr("measured 1600.0 (+25 %)"));
}

}  // namespace
}  // namespace cadre::schedule_choice_test
