// SPDX-License-Identifier: Apache-2.0
// What a run says of uneven experts and ranks, while it goes on and at its end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "runtime/observe/step_metrics.hpp"
#include "tests/support/files.hpp"
#include "tests/support/step_records.hpp"

namespace cadre::balance_alarm_test {
namespace {

using test::example_step;
using test::printed_by;
using test::TemporaryDirectory;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

// Alarms while the run goes on: one at the end of the first bad window, then silence for ten windows.
TEST(BalanceAlarm, NamesTheOptionWhileTheRunGoesOn) {
  BalanceAlarm alarm;
  GlobalStep even;
  even.expert_counts = {{2, 2}};
  even.layer_dropped = {0};
  even.device_slots = {2, 2};
  even.slots_planned = 4;
  GlobalStep bad = even;
  bad.expert_counts = {{9, 1, 0, 0}};  // MaxVio 2.6
  bad.device_slots = {9, 1};           // max / mean 1.8
  bad.slots_planned = 10;
  bad.slots_dropped = 10;
  int64_t step = 0;
  std::vector<std::string> lines;
  const auto window_of = [&](const GlobalStep& global) {
    lines.clear();
    for (int64_t i = 0; i < BalanceAlarm::kWindow; ++i) {
      const std::vector<std::string> more = alarm.add(++step, global);
      EXPECT_TRUE(more.empty() || i + 1 == BalanceAlarm::kWindow);
      lines.insert(lines.end(), more.begin(), more.end());
    }
  };
  window_of(even);
  EXPECT_TRUE(lines.empty());
  window_of(bad);
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_THAT(lines[0], AllOf(StartsWith("ALARM: steps 51 to 100: "), HasSubstr("maxvio 2.60 (limit 1.00)"),
                              HasSubstr("model.aux_loss_alpha")));
  EXPECT_THAT(lines[1], AllOf(HasSubstr("max/mean 1.80"), HasSubstr("parallel.expert")));
  EXPECT_THAT(lines[2], AllOf(HasSubstr("50.0 % of the slots were dropped"), HasSubstr("capacity_factor")));
  for (int64_t window = 0; window < BalanceAlarm::kQuietWindows; ++window) {
    window_of(bad);
    EXPECT_TRUE(lines.empty()) << window;
  }
  window_of(bad);
  EXPECT_EQ(lines.size(), 3U);
}

std::string summary_of(const std::vector<std::vector<int64_t>>& counts) {
  const TemporaryDirectory out;
  std::optional<RunLog> log;
  printed_by([&] {
    log.emplace(out.path(), 0, LogConfig{.every = 1});
    for (int64_t step = 1; step <= 2; ++step) {
      StepRecord record = example_step(step);
      record.global.expert_counts = counts;
      record.global.layer_dropped.assign(counts.size(), 0);
      record.global.layer_device_slots.assign(counts.size(), {8, 8});
      log->step(record);
    }
  });
  return printed_by([&] { log->summary(); });
}

TEST(BalanceAlarm, TheSummaryIsSilentWhenExpertsAreEven) {
  EXPECT_EQ(summary_of({{2, 2, 2, 2}, {4, 2, 1, 1}}), "");
  EXPECT_EQ(summary_of({}), "");
}

TEST(BalanceAlarm, TheSummaryNamesTheOptionToChange) {
  const std::string line = summary_of({{2, 2, 2, 2}, {5, 1, 1, 1}});
  EXPECT_THAT(line, AllOf(StartsWith("NOTE: "), HasSubstr("over 2 steps the average maxvio was 1.50"),
                          HasSubstr("model.aux_loss_alpha"), HasSubstr("model.bias_update_rate")));
  EXPECT_EQ(std::ranges::count(line, '\n'), 1);
  // The busiest has twice the mean, which is still allowed; two dead experts a step are not.
  EXPECT_THAT(summary_of({{4, 4, 0, 0}}), HasSubstr("2.0 experts a step had no token"));
}

}  // namespace
}  // namespace cadre::balance_alarm_test
