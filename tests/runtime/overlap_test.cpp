// SPDX-License-Identifier: Apache-2.0
// The analysis of traces made by hand, against answers worked out by hand. Times in ms; sums of whole nanoseconds
// divided once differ from the decimal fractions here by rounding only.
#include "runtime/report/overlap.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/observe/trace_file.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/traces.hpp"

namespace cadre::overlap_test {
namespace {

using test::add;
using test::exchange_traces;
using test::pipeline_traces;
using test::repeat_step;
using testing::ElementsAre;
using enum TraceKind;

constexpr double kRounding = 1e-12;

void expect_times(const StepTimes& actual, const StepTimes& expected) {
  EXPECT_NEAR(actual.step, expected.step, kRounding);
  EXPECT_NEAR(actual.compute, expected.compute, kRounding);
  EXPECT_NEAR(actual.communication, expected.communication, kRounding);
  EXPECT_NEAR(actual.hidden, expected.hidden, kRounding);
  EXPECT_NEAR(actual.exposed, expected.exposed, kRounding);
  EXPECT_NEAR(actual.idle, expected.idle, kRounding);
  EXPECT_NEAR(actual.exchange, expected.exchange, kRounding);
  EXPECT_NEAR(actual.exchange_hidden, expected.exchange_hidden, kRounding);
  EXPECT_NEAR(actual.skew, expected.skew, kRounding);
  EXPECT_NEAR(actual.transfer, expected.transfer, kRounding);
  EXPECT_NEAR(actual.control, expected.control, kRounding);
  EXPECT_NEAR(actual.step, actual.compute + actual.exposed + actual.control + actual.idle, kRounding);
}

// Rank 0: in flight 200-500 and 650-900, metrics apart; computing meanwhile 200-300 and 650-800. It waits 300-500 for a
// rank that posts at 350, and 800-900 for one that posts at 850.
const StepTimes kFirst = {1.0, 0.65, 0.55, 0.25, 0.3, 0.05, 0.55, 0.25, 0.1, 0.2};
const StepTimes kSecond = {1.0, 0.78, 0.22, 0.0, 0.22, 0.0, 0.22, 0.0, 0.0, 0.22};

TEST(Overlap, OfTwoRanksThatExchange) {
  const OverlapReport report = analyse_overlap(exchange_traces());
  ASSERT_EQ(report.ranks.size(), 2U);
  expect_times(report.ranks[0].times, kFirst);
  expect_times(report.ranks[1].times, kSecond);
  expect_times(report.times, {1.0, 0.715, 0.385, 0.125, 0.26, 0.025, 0.385, 0.125, 0.05, 0.21});
  EXPECT_EQ(report.ranks[1].host, "host1");
  EXPECT_EQ(report.first_step, 7);
  EXPECT_EQ(report.last_step, 7);
  EXPECT_NEAR(report.load_balance, 0.715 / 0.78, kRounding);
  EXPECT_NEAR(report.communication_efficiency, 0.78, kRounding);
  EXPECT_FALSE(report.bubble);
  EXPECT_FALSE(report.without_overlap);
}

// Products of 10, a dispatch of 8, one after the other 18.
TEST(Overlap, HidingByTheDefinitionOfOsu) {
  EXPECT_DOUBLE_EQ(osu_overlap_percent(12, 10, 8, 18), 75) << "2 of 8 show";
  EXPECT_DOUBLE_EQ(osu_overlap_percent(9, 10, 8, 18), 100) << "no more than all";
  EXPECT_DOUBLE_EQ(osu_overlap_percent(18.5, 10, 8, 18), 0) << "no less than nothing";
  // Alone the two took 20; one after the other, warm, 15. Overlapped they took no less.
  EXPECT_DOUBLE_EQ(osu_overlap_percent(14, 10, 10, 15), 60);
  EXPECT_DOUBLE_EQ(osu_overlap_percent(15, 10, 10, 15), 0);
  EXPECT_DOUBLE_EQ(osu_overlap_percent(16, 10, 10, 15), 0);
  EXPECT_DOUBLE_EQ(osu_overlap_percent(10, 10, 0, 18), 0) << "nothing to hide";
}

// The same with rank 1 on a clock that is 20 s behind and loses 100 us in the step's 1,000.
TEST(Overlap, OfTwoClocks) {
  std::vector<RankTrace> traces = exchange_traces();
  const auto local = [](int64_t ns) { return ns - ns / 10 - 20'000'000'000; };
  TraceRecorder recorder(100);
  for (const TracedEvent& event : traces[1].events) {
    recorder.add({event.kind,
                  {event.step, event.micro_batch, event.layer, event.phase.c_str()},
                  local(event.begin_ns),
                  local(event.end_ns),
                  event.bytes});
  }
  const ClockOffsets offsets = {{.at_ns = local(0), .offset_ns = 20'000'000'000},
                                {.at_ns = local(1'000'000), .offset_ns = 20'000'100'000}};
  const OverlapReport report =
      analyse_overlap({traces[0], to_rank_trace(recorder, traces[1].run, 1, "host1", offsets)});
  // Each time is rounded to a nanosecond.
  EXPECT_NEAR(report.ranks[0].times.skew, kFirst.skew, 4e-6);
  EXPECT_NEAR(report.ranks[0].times.transfer, kFirst.transfer, 4e-6);
  EXPECT_NEAR(report.ranks[1].times.compute, kSecond.compute, 1e-5);
  EXPECT_NEAR(report.ranks[1].times.exposed, kSecond.exposed, 1e-5);
  EXPECT_NEAR(report.stragglers.front().mean_late_us, 120.0, 2e-3);
}

TEST(Overlap, ByPhase) {
  const OverlapReport report = analyse_overlap(exchange_traces());
  std::vector<std::string> names;
  for (const PhaseTimes& phase : report.phases) names.push_back(phase.phase);
  EXPECT_THAT(names, ElementsAre("dispatch", "combine", "metrics", "experts", "norm", "optimizer", "shared experts"));
  const PhaseTimes& shared = report.phases[6];
  EXPECT_EQ(shared.phase_class, PhaseClass::compute);
  EXPECT_NEAR(shared.min, 0.0, kRounding) << "rank 1 has none";
  EXPECT_NEAR(shared.mean, 0.05, kRounding);
  EXPECT_NEAR(shared.max, 0.1, kRounding);
  EXPECT_NEAR(shared.variation_percent, 100.0, 1e-9) << "0 and 0.1 deviate by their mean";
  const PhaseTimes& dispatch = report.phases[0];
  EXPECT_EQ(dispatch.phase_class, PhaseClass::exchange);
  EXPECT_NEAR(dispatch.min, 0.17, kRounding);
  EXPECT_NEAR(dispatch.mean, 0.235, kRounding);
  EXPECT_NEAR(dispatch.max, 0.3, kRounding);
  EXPECT_NEAR(dispatch.hidden, 0.05, kRounding);
  EXPECT_NEAR(dispatch.exposed, 0.185, kRounding);
  EXPECT_EQ(dispatch.bytes, 6000);
  // 4,000 B from the last post at 350 to 500, and 2,000 B to 520.
  ASSERT_TRUE(dispatch.gigabytes_per_second);
  EXPECT_NEAR(*dispatch.gigabytes_per_second, 6000 / 320e-6 * 1e-9, kRounding);
  EXPECT_EQ(report.phases[2].phase_class, PhaseClass::control);
  EXPECT_FALSE(shared.gigabytes_per_second);
}

TEST(Overlap, ByLayer) {
  const OverlapReport report = analyse_overlap(exchange_traces());
  ASSERT_EQ(report.layers.size(), 1U);
  const LayerTimes& layer = report.layers.front();
  EXPECT_EQ(layer.layer, 1);
  EXPECT_NEAR(layer.compute, (0.6 + 0.68) / 2, kRounding);
  EXPECT_NEAR(layer.communication, 0.385, kRounding);
  EXPECT_NEAR(layer.hidden, 0.125, kRounding);
  EXPECT_NEAR(layer.exposed, 0.26, kRounding);
  EXPECT_FALSE(layer.tokens_max_over_mean);
}

TEST(Overlap, TheRankThatPostsLast) {
  const OverlapReport report = analyse_overlap(exchange_traces());
  ASSERT_EQ(report.stragglers.size(), 1U);
  const Straggler& late = report.stragglers.front();
  EXPECT_EQ(late.rank, 1);
  EXPECT_EQ(late.times_last, 3) << "dispatch, metrics, combine";
  EXPECT_NEAR(late.share_percent, 100.0, kRounding);
  EXPECT_NEAR(late.mean_late_us, (150.0 + 10.0 + 200.0) / 3, 1e-9);
}

// Four ranks in two groups: nobody waits for the other group, and the n-th exchange of a kind meets the n-th.
TEST(Overlap, ExchangesMeetInsideTheirGroup) {
  const TracedRun run = test::traced_run(1, 4, 2);
  std::vector<RankTrace> traces;
  for (int rank = 0; rank < 4; ++rank) {
    RankTrace trace = test::empty_trace(run, rank);
    const int64_t late = rank == 3 ? 40 : 0;
    add(trace, compute, "norm", 0, 10 + late, {.layer = 1});
    for (const int64_t first : {10, 100}) {
      add(trace, flight, "dispatch", first + late, first + 60, {.layer = 1});
      add(trace, wait, "dispatch", first + late, first + 60, {.layer = 1});
    }
    add(trace, step, "step", 0, 200);
    traces.push_back(trace);
  }
  const OverlapReport report = analyse_overlap(traces);
  EXPECT_NEAR(report.ranks[0].times.skew, 0.0, kRounding);
  EXPECT_NEAR(report.ranks[2].times.skew, 0.08, kRounding);
  EXPECT_NEAR(report.ranks[2].times.transfer, 0.04, kRounding);
  ASSERT_EQ(report.stragglers.size(), 2U);
  EXPECT_EQ(report.stragglers[0].times_last, 2);
  EXPECT_EQ(report.stragglers[0].times_last + report.stragglers[1].times_last, 4);
}

// A wait that does not say what it was for was for the request whose completion ended it.
TEST(Overlap, AWaitWithoutAName) {
  std::vector<RankTrace> traces = exchange_traces();
  for (TracedEvent& event : traces[0].events) {
    if (event.kind == wait) event.phase = "other";
  }
  expect_times(analyse_overlap(traces).ranks[0].times, kFirst);
}

// Before its send is posted a receive is no communication: rank 0 has 100-160 and 380-420 in flight and is idle between,
// rank 1 has 100-160 and 380-420: its send is over when the row is there, and that it notices at 425 is idle time.
TEST(Overlap, AMessageCountsFromItsSendToItsReceive) {
  const OverlapReport report = analyse_overlap(pipeline_traces());
  expect_times(report.ranks[0].times, {0.6, 0.28, 0.1, 0.0, 0.1, 0.22, 0.0, 0.0, 0.0, 0.1});
  expect_times(report.ranks[1].times, {0.6, 0.22, 0.1, 0.0, 0.1, 0.28, 0.0, 0.0, 0.0, 0.1});
  // 800 B each, from 100 to 160 and from 380 to 420.
  const auto rate_of = [&](const char* phase) {
    return std::ranges::find(report.phases, phase, &PhaseTimes::phase)->gigabytes_per_second.value();
  };
  EXPECT_NEAR(rate_of("send activations"), 800 / 60e-6 * 1e-9, kRounding);
  EXPECT_NEAR(rate_of("send gradients"), 800 / 40e-6 * 1e-9, kRounding);
  EXPECT_TRUE(report.stragglers.empty()) << "waiting for a stage is the schedule's, not a rank's";
}

// Rank 0 works 100 + 180 of 600 us, rank 1 80 + 140; the simulation of these lasts 500, because its messages take nothing.
// The formula has the mean of F + B.
TEST(Overlap, TheBubbleBesideItsSimulation) {
  const OverlapReport report = analyse_overlap(pipeline_traces());
  ASSERT_TRUE(report.bubble);
  EXPECT_NEAR(report.bubble->measured, (0.32 + 0.38) / 2, kRounding);
  EXPECT_NEAR(report.bubble->simulated, (0.22 + 0.28) / 2, kRounding);
  EXPECT_NEAR(report.bubble->formula, 0.25, kRounding);
  EXPECT_EQ(report.bubble->formula_text, "(R-1)(F+B)");
}

// A send that is buffered ends at once; its row still travels until the receive has it.
TEST(Overlap, ABufferedSendArrivesWithItsReceive) {
  std::vector<RankTrace> traces = pipeline_traces();
  for (TracedEvent& event : traces[0].events) {
    if (event.phase == "send activations") event.end_ns = 101'000;
  }
  const OverlapReport report = analyse_overlap(traces);
  const auto send = std::ranges::find(report.phases, "send activations", &PhaseTimes::phase);
  EXPECT_NEAR(send->gigabytes_per_second.value(), 800 / 60e-6 * 1e-9, kRounding);
  EXPECT_NEAR(report.ranks[0].times.communication, 0.041, kRounding) << "1 of the send, 40 of the other receive";
}

// A send that nobody has posted a receive for waits for the receiver.
TEST(Overlap, ASendWaitsForItsReceiver) {
  std::vector<RankTrace> traces = pipeline_traces();
  for (TracedEvent& event : traces[0].events) {
    if (event.phase == "receive gradients" && event.kind == flight) event.begin_ns = 395'000;
  }
  const StepTimes times = analyse_overlap(traces).ranks[1].times;
  EXPECT_NEAR(times.skew, 0.015, kRounding);
  EXPECT_NEAR(times.transfer, 0.085, kRounding);
}

// A request that is posted in step 7 and completes in step 8 counts in each as far as it lies inside; its bytes count
// once.
TEST(Overlap, AFlightAcrossTheBorderOfSteps) {
  std::vector<RankTrace> traces;
  for (int rank = 0; rank < 2; ++rank) {
    RankTrace trace = test::empty_trace(test::traced_run(1, 2, 2), rank);
    for (const int64_t number : {7, 8}) {
      const int64_t begin = (number - 7) * 100;
      add(trace, compute, "norm", begin, begin + 80, {.step = number});
      add(trace, step, "step", begin, begin + 100, {.step = number});
    }
    add(trace, flight, "gradient norm", 70, 150, {.bytes = 500, .step = 7});
    traces.push_back(trace);
  }
  const auto in_steps = [&](int64_t first, int64_t last) { return analyse_overlap(traces, {first, last}); };
  expect_times(
      in_steps(7, 7).times,
      {.step = 0.1, .compute = 0.08, .communication = 0.03, .hidden = 0.01, .exposed = 0.02, .transfer = 0.02});
  expect_times(in_steps(8, 8).times,
               {.step = 0.1, .compute = 0.08, .communication = 0.05, .hidden = 0.05, .idle = 0.02});
  EXPECT_EQ(in_steps(7, 7).phases.front().bytes, 1000);
  EXPECT_EQ(in_steps(8, 8).phases.front().bytes, 0);
  EXPECT_EQ(in_steps(7, 8).phases.front().bytes, 500) << "a step, over both ranks";
  EXPECT_NEAR(in_steps(7, 8).times.communication, 0.04, kRounding);
}

TEST(Overlap, StepsWithLostEventsAreLeftOut) {
  std::vector<RankTrace> traces = exchange_traces();
  for (RankTrace& trace : traces) repeat_step(trace, 8, 2000);
  // Rank 1 lost the first two events: its step 7 has its span yet, but not all that was in it.
  traces[1].events.erase(traces[1].events.begin(), traces[1].events.begin() + 2);
  traces[1].num_lost = 2;
  const OverlapReport report = analyse_overlap(traces);
  EXPECT_EQ(report.first_step, 8);
  EXPECT_EQ(report.num_steps, 1);
  EXPECT_EQ(report.lost_events, 2U);
  expect_times(report.ranks[0].times, kFirst);
  expect_times(report.ranks[1].times, kSecond);
  EXPECT_EQ(report.stragglers.front().times_last, 3);
}

TEST(Overlap, NoCompleteStepIsAnError) {
  std::vector<RankTrace> traces = exchange_traces();
  traces[1].num_lost = 2;
  traces[1].events.erase(traces[1].events.begin(), traces[1].events.begin() + 2);
  test::expect_message(test::message_of([&] { analyse_overlap(traces); }),
                       {"no complete step", "all 2 ranks", "up to 2 events were lost"});
  test::expect_message(test::message_of([] {
                         analyse_overlap(exchange_traces(), {9, 12});
                       }),
                       {"none of the chosen steps", "7 to 7"});
}

TEST(Overlap, RefusesTracesThatDoNotFitTogether) {
  std::vector<RankTrace> traces = exchange_traces();
  test::expect_message(test::message_of([&] { analyse_overlap({traces[0]}); }), {"1 ranks", "the run had 2"});
  test::expect_message(test::message_of([&] { analyse_overlap({traces[0], traces[0]}); }), {"trace 1 is of rank 0"});
  traces[1].run.config_hash = "other";
  test::expect_message(test::message_of([&] { analyse_overlap(traces); }), {"different runs"});
  test::expect_message(test::message_of([] { analyse_overlap({}); }), {"no traces"});
}

// The serial step lies behind the others and is 500 us longer, all of it exposed. The passes of the other end 100 us before
// its step does.
TEST(Overlap, BesideTheSameStepWithoutOverlap) {
  std::vector<RankTrace> traces = exchange_traces();
  for (RankTrace& trace : traces) {
    repeat_step(trace, 7, 2000, "step without overlap");
    trace.events.back().end_ns += 500'000;
    add(trace, op, "passes", 0, 900);
    add(trace, flight, "dispatch", 3000, 3500, {.layer = 1, .micro_batch = 0});
    add(trace, wait, "dispatch", 3000, 3500, {.layer = 1, .micro_batch = 0});
  }
  const OverlapReport report = analyse_overlap(traces);
  expect_times(report.ranks[0].times, kFirst);
  EXPECT_EQ(report.stragglers.front().times_last, 3);
  ASSERT_TRUE(report.without_overlap);
  EXPECT_NEAR(report.without_overlap->times.step, 1.5, kRounding);
  EXPECT_NEAR(report.without_overlap->times.exposed, 0.76, kRounding);
  EXPECT_NEAR(report.without_overlap->times.exchange, 0.885, kRounding);
  EXPECT_NEAR(report.without_overlap->times.exchange_hidden, 0.125, kRounding);
  EXPECT_NEAR(report.without_overlap->overlapped, 0.9, kRounding);
  EXPECT_NEAR(report.without_overlap->speed_up, 1.5 / 0.9, kRounding);
  // The 100 us outside of the passes are the same.
  ASSERT_TRUE(report.speed_up);
  EXPECT_TRUE(report.speed_up->is_measured);
  EXPECT_NEAR(report.speed_up->serial, 1.6, kRounding);
  EXPECT_NEAR(report.speed_up->ratio, 1.6, kRounding);
}

// Metrics in flight from 600 on keep rank 0 waiting until 980; combine is in flight until 900.
TEST(Overlap, ControlTrafficIsNoCommunication) {
  std::vector<RankTrace> traces = exchange_traces();
  std::erase_if(traces[0].events,
                [](const TracedEvent& event) { return event.begin_ns >= 900'000 || event.kind == step; });
  for (TracedEvent& event : traces[0].events) {
    if (event.phase == "metrics") event.end_ns = 980'000;
  }
  add(traces[0], wait, "metrics", 900, 980);
  add(traces[0], compute, "optimizer", 980, 1000);
  add(traces[0], step, "step", 0, 1000);
  expect_times(analyse_overlap(traces).ranks[0].times, {.step = 1.0,
                                                        .compute = 0.62,
                                                        .communication = 0.55,
                                                        .hidden = 0.25,
                                                        .exposed = 0.3,
                                                        .idle = 0,
                                                        .exchange = 0.55,
                                                        .exchange_hidden = 0.25,
                                                        .skew = 0.1,
                                                        .transfer = 0.2,
                                                        .control = 0.08});
}

// What a rank exchanges with itself is a copy.
TEST(Overlap, OneRankHasNoCommunication) {
  RankTrace trace = test::empty_trace(test::traced_run(1, 1, 1), 0);
  add(trace, compute, "norm", 0, 60, {.layer = 1});
  add(trace, flight, "dispatch", 20, 90, {.layer = 1, .bytes = 100});
  add(trace, wait, "dispatch", 60, 90, {.layer = 1});
  add(trace, wait, "metrics", 90, 100);
  add(trace, step, "step", 0, 100);
  const OverlapReport report = analyse_overlap({trace});
  expect_times(report.times, {.step = 0.1, .compute = 0.06, .idle = 0.04});
  EXPECT_FALSE(report.speed_up);
  ASSERT_EQ(report.phases.size(), 1U);
  EXPECT_EQ(report.phases.front().phase, "norm");
}

}  // namespace
}  // namespace cadre::overlap_test
