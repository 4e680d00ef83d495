// SPDX-License-Identifier: Apache-2.0
// What a report says of the run beside the times of its ranks, of traces made by hand: speed-up, cores, steady state,
// balance, loss and load over time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/report/overlap.hpp"
#include "runtime/report/report.hpp"
#include "tests/support/traces.hpp"

namespace cadre::overlap_headline_test {
namespace {

using test::add;
using test::exchange_traces;
using test::pipeline_traces;
using test::repeat_step;
using testing::ElementsAre;
using enum TraceKind;

constexpr double kRounding = 1e-12;

// Where no steps ran serially: compute 0.715 and communication 0.385, one after the other.
TEST(OverlapHeadline, SpeedUpOverSerialByIntervals) {
  const OverlapReport report = analyse_overlap(exchange_traces());
  ASSERT_TRUE(report.speed_up);
  EXPECT_FALSE(report.speed_up->is_measured);
  EXPECT_NEAR(report.speed_up->serial, 0.715 + 0.385, kRounding);
  EXPECT_NEAR(report.speed_up->ratio, 1.1, kRounding);
  EXPECT_FALSE(analyse_overlap(pipeline_traces()).speed_up) << "a serial pipeline waits too";
}

// Serial passes of 800 us in the place of 900 with overlap; the step around them takes 100 more.
TEST(OverlapHeadline, SlowerThanSerial) {
  std::vector<RankTrace> traces = exchange_traces();
  for (RankTrace& trace : traces) {
    repeat_step(trace, 7, 2000, "step without overlap");
    trace.events.back().end_ns -= 200'000;
    add(trace, op, "passes", 0, 900);
  }
  const OverlapReport report = analyse_overlap(traces);
  ASSERT_TRUE(report.speed_up);
  EXPECT_NEAR(report.speed_up->serial, 0.9, kRounding);
  EXPECT_NEAR(report.speed_up->ratio, 0.9, kRounding);
}

TEST(OverlapHeadline, MoreThreadsThanCores) {
  std::vector<RankTrace> traces = exchange_traces();
  const auto cores = [&](std::vector<int> first, std::vector<int> second, const char* machine_of_second, int threads) {
    traces[0].machine = "a";
    traces[1].machine = machine_of_second;
    traces[0].cores = std::move(first);
    traces[1].cores = std::move(second);
    for (RankTrace& trace : traces) trace.run.threads = threads;
    return analyse_overlap(traces).cores;
  };
  EXPECT_FALSE(analyse_overlap(traces).cores) << "the traces do not say";
  EXPECT_EQ(cores({0, 1}, {0, 1}, "a", 1)->number, 2);
  EXPECT_FALSE(cores({0, 1}, {0, 1}, "a", 1)->are_shared);
  EXPECT_TRUE(cores({3}, {3}, "a", 1)->are_shared);
  EXPECT_FALSE(cores({3}, {5}, "a", 1)->are_shared) << "each is bound to its own";
  EXPECT_TRUE(cores({0, 1}, {0, 1}, "a", 2)->are_shared) << "2 x 2 threads";
  EXPECT_EQ(cores({3}, {3}, "b", 1)->number, 2) << "of two machines";
  EXPECT_FALSE(cores({3}, {3}, "b", 1)->are_shared);
}

// Rank 0 overlaps 250-700: dispatch in flight until 500, combine from 650; computing 250-300 and from 500. Rank 1 does not.
TEST(OverlapHeadline, SteadyStateIsInsideOverlappedOps) {
  std::vector<RankTrace> traces = exchange_traces();
  EXPECT_FALSE(analyse_overlap(traces).steady);
  add(traces[0], op, "overlapped", 250, 700, {.micro_batch = 0});
  const OverlapReport report = analyse_overlap(traces);
  ASSERT_TRUE(report.steady);
  EXPECT_NEAR(report.steady->time, 0.45 / 2, kRounding);
  EXPECT_NEAR(report.steady->compute, 0.25 / 2, kRounding);
  EXPECT_NEAR(report.steady->exchange, 0.3 / 2, kRounding);
  EXPECT_NEAR(report.steady->exchange_hidden, 0.1 / 2, kRounding);
}

TEST(OverlapHeadline, BalanceOfTheTracedSteps) {
  const std::vector<LoggedStep> metrics = {
      {{6, 0.1, 0.1, 0.5, 0.0}, {{1, {9, 9, 9, 9}}}},
      {{7, 0.2, 0.1, 1.0, 0.25}, {{1, {4, 2, 1, 1}}}},
  };
  const OverlapReport report = analyse_overlap(exchange_traces(), {}, metrics);
  ASSERT_EQ(report.balance.size(), 2U);
  EXPECT_EQ(report.balance[1].drop_rate, 0.25);
  ASSERT_EQ(report.expert_load.size(), 1U);
  EXPECT_THAT(report.expert_load.front().counts, ElementsAre(4, 2, 1, 1));
  EXPECT_EQ(report.layers.front().tokens_max_over_mean, 2.0);
  EXPECT_FALSE(report.loss);
  EXPECT_FALSE(report.tokens_per_second);
}

// Two steps of 1 ms.
TEST(OverlapHeadline, LossAndTokensOfTheTracedSteps) {
  std::vector<RankTrace> traces = exchange_traces();
  for (RankTrace& trace : traces) repeat_step(trace, 8, 2000);
  std::vector<LoggedStep> metrics(3);
  for (int i = 0; i < 3; ++i) {
    metrics[static_cast<size_t>(i)].balance.step = 6 + i;
    metrics[static_cast<size_t>(i)].loss = 5.0 - i;
    metrics[static_cast<size_t>(i)].num_tokens = 1000 * (i + 1);
  }
  const OverlapReport report = analyse_overlap(traces, {}, metrics);
  EXPECT_DOUBLE_EQ(report.loss.value(), 3.5);
  EXPECT_NEAR(report.tokens_per_second.value(), 2500 / 1e-3, 1e-6);
}

// 96 steps in 48 columns. Of five layers the even one is left out.
TEST(OverlapHeadline, LoadOverTime) {
  std::vector<LoggedStep> metrics;
  for (int64_t step = 1; step <= 96; ++step) {
    LoggedStep& one = metrics.emplace_back();
    one.balance.step = step;
    for (const int layer : {5, 3, 1, 2, 4}) one.layers.push_back({layer, {layer == 3 ? 1 : 4 + step, 1}});
  }
  const std::vector<LoadOverTime> layers = analyse_overlap(exchange_traces(), {}, metrics).load_over_time;
  ASSERT_EQ(layers.size(), 4U);
  EXPECT_EQ(layers[1].layer, 2);
  EXPECT_EQ(layers[2].layer, 4) << "in order, without the even one";
  ASSERT_EQ(layers[0].first_steps.size(), 48U);
  EXPECT_EQ(layers[0].first_steps[1], 3);
  EXPECT_THAT(layers[0].counts[1], ElementsAre(7 + 8, 2)) << "steps 3 and 4";
}

// Experts moved in step 2, a proposal was refused after step 3; step 5 knows what the move saved.
TEST(OverlapHeadline, MovesOfExperts) {
  std::vector<LoggedStep> metrics(5);
  for (int i = 0; i < 5; ++i) {
    metrics[static_cast<size_t>(i)].balance.step = i + 1;
    metrics[static_cast<size_t>(i)].device_max_over_mean = 2.0 - 0.25 * i;
  }
  metrics[1].move = LoggedMove{.step = 2, .moved = 3, .bytes = 1 << 20, .load_before = 1.75, .gain_ms = 4.0};
  metrics[2].move = LoggedMove{.step = 3, .refused = 2, .load_before = 1.5};
  metrics[4].move_got_ms = 3.5;
  const OverlapReport report = analyse_overlap(exchange_traces(), {}, metrics);
  ASSERT_EQ(report.moves.size(), 2U);
  EXPECT_EQ(report.moves[0].load_after, 1.5);
  EXPECT_EQ(report.moves[0].got_ms, 3.5);
  EXPECT_EQ(report.moves[1].load_after, std::nullopt);
  EXPECT_EQ(report.moves[1].got_ms, std::nullopt);
  const std::string text = report_text(report);
  EXPECT_NE(text.find("moved in step"), std::string::npos);
  EXPECT_NE(text.find("1 moves refused"), std::string::npos);
  const auto json = report_json(report);
  EXPECT_EQ(json["moves"][0]["bytes"], 1 << 20);
  EXPECT_EQ(json["moves"][0]["load_before"], 1.75);
  EXPECT_EQ(json["moves"][1]["refused"], 2);
}

}  // namespace
}  // namespace cadre::overlap_headline_test
