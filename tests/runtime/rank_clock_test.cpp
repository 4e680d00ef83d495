// SPDX-License-Identifier: Apache-2.0
// The clock of a rank against cases worked out by hand, and against the bubbles of the schedules' formulas.
#include "runtime/plan/rank_clock.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "comm/base/random.hpp"
#include "runtime/plan/predict_step.hpp"
#include "runtime/plan/step_timeline.hpp"
#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre::rank_clock_test {
namespace {

constexpr double kRounding = 1e-9;

PassPart works(double seconds) { return {PartKind::compute, seconds}; }
PassPart starts(int id, double seconds, double latency = 0.0) { return {PartKind::start, seconds, latency, id}; }
PassPart awaits(int id) { return {PartKind::await, 0.0, 0.0, id}; }
PassPart later(double seconds) { return {PartKind::defer, seconds}; }
PassPart ends(int bucket) { return {PartKind::end_bucket, 0.0, 0.0, bucket}; }

// 2 s, an exchange of 3 s, 1 s; back 1 s, an exchange of 3 s, 1 s, and 2 s of weight gradients.
StageTimes one_layer() {
  return {.forward = {works(2), starts(0, 3), awaits(0), works(1)},
          .backward = {works(1), starts(0, 3), awaits(0), works(1), later(2), ends(0)},
          .buckets = {{}}};
}

struct Outcome {
  double end = 0.0;
  double compute = 0.0;
  double waits = 0.0;
  double exchanges = 0.0;
};

Outcome run_on_one_rank(const Program& program, const StageTimes& stage, ClockOverlap overlap = ClockOverlap::on,
                        bool hands_values = false, double contention = 0.0) {
  const std::vector<StageTimes> stages = {stage};
  RankClock clock(program, 0, stages, {.piece_s = 1.0, .contention = contention}, overlap);
  if (hands_values) clock.start_values(0.0);
  double now = 0.0;
  for (size_t i = 0; i < program.ops[0].size(); ++i) now = clock.run(i, now);
  Outcome outcome;
  outcome.end = clock.finish(now);
  outcome.compute = clock.compute_s();
  outcome.waits = length_of(union_of(clock.waits()));
  outcome.exchanges = length_of(union_of(clock.exchanges()));
  return outcome;
}

TEST(LinkClock, sends_one_after_the_other) {
  LinkClock link({.piece_s = 1.0});
  EXPECT_DOUBLE_EQ(link.send(0.0, 2.0), 2.0);
  EXPECT_DOUBLE_EQ(link.send(1.0, 2.0), 4.0);
  EXPECT_DOUBLE_EQ(link.send(10.0, 2.0), 12.0);
}

// Bulk of 5 s in pieces of 1 s: two are handed over at 0. At 0.5 an exchange of 1 s waits for both, until 3; the piece that
// followed the first one at 1 stands behind it.
TEST(LinkClock, an_exchange_waits_for_two_pieces_of_bulk) {
  LinkClock link({.piece_s = 1.0});
  const int bulk = link.add_bulk(0.0, 5.0);
  EXPECT_DOUBLE_EQ(link.bulk_end(bulk, 0.0), 5.0);
  EXPECT_DOUBLE_EQ(link.send(0.5, 1.0), 3.0);
  EXPECT_DOUBLE_EQ(link.bulk_end(bulk, 0.5), 6.0);
  EXPECT_DOUBLE_EQ(link.send(3.5, 1.0), 6.0) << "behind the pieces that follow those that ended at 1 and 2";
  EXPECT_DOUBLE_EQ(link.bulk_end(bulk, 20.0), 7.0);
}

// A burst of 3 s: at 0 the link owes nothing and sends 5 s of data in 2. At 4 it has 2 s of credit again, and 5 s take 3.
TEST(LinkClock, an_idle_link_saves_up_a_burst) {
  LinkClock link({.piece_s = 1.0, .burst_s = 3.0});
  EXPECT_DOUBLE_EQ(link.send(0.0, 5.0), 2.0);
  EXPECT_DOUBLE_EQ(link.send(4.0, 5.0), 7.0);
  EXPECT_DOUBLE_EQ(link.send(20.0, 1.0), 20.0);
}

TEST(RankClock, unions_and_what_they_have_in_common) {
  const std::vector<ClockSpan> a = union_of({{4, 6}, {0, 2}, {1, 3}, {7, 7}});
  EXPECT_DOUBLE_EQ(length_of(a), 5.0);
  EXPECT_DOUBLE_EQ(common_length(a, union_of({{2, 5}})), 2.0);
}

// Forward 2 + 3 + 1; backward 1 + 3 + 1 + 2: nothing is there to hide the exchanges.
TEST(RankClock, a_serial_micro_batch_shows_its_exchanges) {
  const Outcome outcome = run_on_one_rank(one_f_one_b(1, 1), one_layer());
  EXPECT_DOUBLE_EQ(outcome.end, 13.0);
  EXPECT_DOUBLE_EQ(outcome.compute, 7.0);
  EXPECT_DOUBLE_EQ(outcome.waits, 6.0);
  EXPECT_DOUBLE_EQ(outcome.exchanges, 6.0);
}

// F0 0-6. F1&B0: B0 works 6-7 and starts its exchange, F1 works 7-9 and starts the other, behind it from 10 to 13. B0 waits to
// 10, works to 11, its weight gradients fill 11-13, F1 works 13-14. B1: 14-15, exchange to 18, 18-19, weights to 21.
TEST(RankClock, a_pair_hides_exchanges_behind_the_other_pass_and_weights) {
  const Outcome outcome = run_on_one_rank(pair(2, 1), one_layer());
  EXPECT_DOUBLE_EQ(outcome.end, 21.0);
  EXPECT_DOUBLE_EQ(outcome.compute, 14.0);
  EXPECT_DOUBLE_EQ(outcome.waits, 3.0 + 1.0 + 3.0);
}

// Both forwards together, the second first: works 0-2 and 2-4, exchanges 2-5 and 5-8, works 5-6 and 8-9. Both backwards: works
// 9-10 and 10-11, exchanges 10-13 and 13-16, the second works 13-14, the first 16-17. The weights of the first come first, so
// none fills 14-16: 17-21.
TEST(RankClock, ramps_run_passes_side_by_side) {
  const Outcome outcome = run_on_one_rank(pair(2, 2), one_layer());
  EXPECT_DOUBLE_EQ(outcome.end, 21.0);
  EXPECT_DOUBLE_EQ(outcome.compute, 14.0);
  EXPECT_DOUBLE_EQ(outcome.waits, 1.0 + 2.0 + 2.0 + 2.0);
}

// F0 works 0-5, exchange to 6, 6-7. F1&B0: B0 7-8, exchange to 12, F1 8-13, exchange to 14, B0 13-14, F1 14-15. F2&B1 the same,
// 15-23. With one postponed the weights of B0 run 23-25, B2 25-26, exchange to 30, the weights of B1 in it, 30-31, own weights
// 31-33. With two those of B0 fill the exchange too.
TEST(RankClock, more_postponed_weights_fill_a_later_exchange) {
  const StageTimes stage = {.forward = {works(5), starts(0, 1), awaits(0), works(1)},
                            .backward = {works(1), starts(0, 4), awaits(0), works(1), later(2), ends(0)},
                            .buckets = {{}}};
  Program program = pair(3, 1);
  EXPECT_DOUBLE_EQ(run_on_one_rank(program, stage).end, 33.0);
  program.num_postponed = 2;
  const Outcome outcome = run_on_one_rank(program, stage);
  EXPECT_DOUBLE_EQ(outcome.end, 31.0);
  EXPECT_DOUBLE_EQ(outcome.waits, 1.0);
}

// Two layers, each with 1 s of weight gradients and a sum of 3 s. F0 0-1, F1&B0 works 1-4 (weights wait), B1 4-6. Then layer by
// layer: those of bucket 1 of both 6-8, their sum to 11, of bucket 0 8-10, their sum 11-14. Micro-batch by micro-batch the sums
// would begin at 9 and end at 15.
TEST(RankClock, postponed_weights_of_a_layer_end_together) {
  const StageTimes stage = {.forward = {works(1)},
                            .backward = {works(1), later(1), ends(1), works(1), later(1), ends(0)},
                            .buckets = {{.reduce_s = 3.0}, {.reduce_s = 3.0}}};
  Program program = pair(2, 1);
  EXPECT_DOUBLE_EQ(run_on_one_rank(program, stage).end, 15.0);
  program.ends_by_layer = true;
  EXPECT_DOUBLE_EQ(run_on_one_rank(program, stage).end, 14.0);
}

// As above, with 1 s more of each layer and micro-batch that no sum waits for: behind the others, 10-14, in the shadow of the sums.
TEST(RankClock, gradients_that_are_not_summed_come_last) {
  const PassPart last = {PartKind::defer_last, 1.0};
  const StageTimes stage = {.forward = {works(1)},
                            .backward = {works(1), last, later(1), ends(1), works(1), last, later(1), ends(0)},
                            .buckets = {{.reduce_s = 3.0}, {.reduce_s = 3.0}}};
  Program program = pair(2, 1);
  program.ends_by_layer = true;
  const Outcome outcome = run_on_one_rank(program, stage);
  EXPECT_DOUBLE_EQ(outcome.end, 14.0);
  EXPECT_DOUBLE_EQ(outcome.waits, 0.0);
}

TEST(RankClock, without_overlap_all_stand_one_behind_the_other) {
  EXPECT_DOUBLE_EQ(run_on_one_rank(pair(2, 2), one_layer(), ClockOverlap::off).end, 26.0);
  EXPECT_DOUBLE_EQ(run_on_one_rank(pair(2, 1), one_layer(), ClockOverlap::off).end, 26.0);
}

// The sum of the gradients of bucket 1 begins when its weight gradients are done, and hides behind the rest of backward.
TEST(RankClock, sums_begin_with_the_last_gradient_and_values_are_awaited) {
  StageTimes stage;
  stage.forward = {{PartKind::await_values, 0, 0, 1}, works(2)};
  stage.backward = {works(1), later(1), ends(1), works(3), ends(0)};
  stage.buckets = {{.reduce_s = 0.5, .add_s = 0.25, .values_s = 0.0}, {.reduce_s = 2.0, .add_s = 0.5, .values_s = 4.0}};
  // Values to 4, forward to 6, backward 6-8 and the sum from 8 to 10, added in 0.5, works 8.5-11.5; the sum of bucket 0 from
  // 11.5 to 12, while 0.25 are added.
  const Outcome outcome = run_on_one_rank(one_f_one_b(1, 1), stage, ClockOverlap::on, /*hands_values=*/true);
  EXPECT_DOUBLE_EQ(outcome.end, 12.0);
  EXPECT_DOUBLE_EQ(outcome.compute, 2 + 1 + 1 + 3 + 0.75);
  EXPECT_DOUBLE_EQ(outcome.waits, 4.0 + 0.25);
}

// A sum waits for the backward pass of the last micro-batch of its stage.
TEST(RankClock, only_the_last_micro_batch_starts_a_sum) {
  StageTimes stage;
  stage.forward = {works(1)};
  stage.backward = {works(1), later(1), ends(0)};
  stage.buckets = {{.reduce_s = 5.0}};
  EXPECT_DOUBLE_EQ(run_on_one_rank(one_f_one_b(1, 3), stage).end, 9.0 + 5.0);
}

// While the link sends for 5 s work takes 1.25 times as long: 4 of the 6 s of work take 5.
TEST(RankClock, work_is_slower_while_the_link_is_busy) {
  StageTimes stage;
  stage.forward = {works(1), starts(0, 5), works(6), awaits(0)};
  stage.backward = {ends(0)};
  stage.buckets = {{}};
  const Outcome outcome = run_on_one_rank(one_f_one_b(1, 1), stage, ClockOverlap::on, false, /*contention=*/0.25);
  EXPECT_DOUBLE_EQ(outcome.end, 1.0 + 5.0 + 2.0);
  EXPECT_DOUBLE_EQ(outcome.compute, 8.0);
  EXPECT_DOUBLE_EQ(outcome.waits, 0.0);
}

StepShape even_pipeline(const std::string& schedule, int ranks, int micro_batches) {
  StepShape shape;
  shape.program = make_program(schedule, ranks, micro_batches);
  shape.grid = Grid::make(ranks, ranks, 1);
  const StageTimes stage = {.forward = {works(1)}, .backward = {works(1), later(1), ends(0)}, .buckets = {{}}};
  shape.stages.assign(static_cast<size_t>(shape.program.num_stages), stage);
  shape.skew_s.assign(shape.stages.size(), 0.0);
  shape.tail_s.assign(shape.stages.size(), 0.0);
  shape.tokens_of_step = 100.0;
  shape.flops_per_token = 1e9;
  return shape;
}

// The executor sends the gradient of an overlapped op's input before the weight gradients of that op, which the formulas of DualPipe
// and DualPipeV do not: there the bubble is smaller.
TEST(PredictStep, has_the_bubble_of_the_formula_where_stages_are_even) {
  for (const std::string schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
    for (const int ranks : {2, 4, 8, 16, 32}) {
      const StepShape shape = even_pipeline(schedule, ranks, 4 * ranks);
      const StepPrediction step = predict_step(shape, 1.0);
      SCOPED_TRACE(schedule + " on " + std::to_string(ranks));
      ASSERT_EQ(shape.program.name, schedule);
      const double formula = formula_bubble(shape.program, Cost());
      EXPECT_NEAR(step.formula_bubble_s, formula, kRounding);
      EXPECT_NEAR(step.schedule_bubble_s, formula, kRounding);
      if (schedule == "1f1b" || schedule == "zb1p") {
        EXPECT_NEAR(step.idle_s, formula, kRounding);
      } else {
        EXPECT_LE(step.idle_s, formula);
      }
      EXPECT_NEAR(step.compute_s + step.idle_s, step.step_s, kRounding);
      EXPECT_NEAR(step.tokens_per_s, 100.0 / step.step_s, kRounding);
      EXPECT_NEAR(step.mfu, 100.0 / step.step_s / ranks, kRounding) << "GFLOP a token, 1 GFLOP/s a rank";
    }
  }
}

// Rows of 1 s behind a sum of 3 s that began with them: forward 0-1 on the first rank, rows 1-2, forward and backward of the second
// rank 2-5. Its sum takes the link from 5 on in pieces of 1 s, two of which stand before the gradients of the rows: these arrive at
// 8, and the first rank works to 10.
TEST(PredictStep, rows_between_stages_share_the_link_with_sums) {
  StepShape shape = even_pipeline("1f1b", 2, 1);
  shape.link = {.piece_s = 1.0, .rows_s = 1.0};
  shape.stages[1].buckets = {{.reduce_s = 3.0}};
  const StepPrediction step = predict_step(shape, 1.0);
  EXPECT_NEAR(step.step_s, 10.0, kRounding);
  EXPECT_NEAR(step.rows[0].exposed_s, 3.0, kRounding) << "from 5, when they were sent, to 8";
  EXPECT_NEAR(step.rows[1].exposed_s, 1.0 + 4.0, kRounding) << "rows from 1 to 2; its own sum from 5 to 9";
}

TEST(PredictStep, adds_what_follows_the_passes_and_the_way_of_messages) {
  StepShape shape = even_pipeline("1f1b", 2, 1);
  EXPECT_NEAR(predict_step(shape, 1.0).step_s, 6.0, kRounding);
  shape.message_s = 0.5;
  EXPECT_NEAR(predict_step(shape, 1.0).step_s, 7.0, kRounding);
  shape.tail_s = {0.25, 0.75};
  shape.tail_latency_s = 0.125;
  EXPECT_NEAR(predict_step(shape, 1.0).step_s, 7.875, kRounding);
}

// Two rows, two micro-batches: forward 1 s, backward 1 s and weights 1 s, without messages. Row 0: F0 0-1, F1 1-2, waits, B0 4-6, B1
// 7-9. Row 1: waits, F0 1-2, B0 2-4, F1 4-5, B1 5-7, waits. Then the tails, of 0.25 and 0.75 s, and sums of 0.125 s.
TEST(StepTimeline, shows_what_each_row_does_when) {
  StepShape shape = even_pipeline("1f1b", 2, 2);
  shape.tail_s = {0.25, 0.75};
  shape.tail_latency_s = 0.125;
  const StepTimeline timeline = step_timeline(shape);
  EXPECT_NEAR(timeline.step_s, 9.0 + 0.75 + 0.125, kRounding);
  ASSERT_EQ(timeline.rows.size(), 2U);
  const auto expect_spans = [](const std::vector<ClockSpan>& spans, const std::vector<ClockSpan>& expected) {
    const std::vector<ClockSpan> all = union_of(spans);
    ASSERT_EQ(all.size(), expected.size());
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_NEAR(all[i].begin, expected[i].begin, kRounding) << i;
      EXPECT_NEAR(all[i].end, expected[i].end, kRounding) << i;
    }
  };
  expect_spans(timeline.rows[0].compute, {{0, 2}, {4, 6}, {7, 9.25}});
  expect_spans(timeline.rows[1].compute, {{1, 7}, {9, 9.75}});
  for (const RowTimeline& row : timeline.rows) {
    expect_spans(row.exposed, {{9.75, 9.875}});
    expect_spans(row.hidden, {});
  }
}

// As above, one row and one pass: 2 s, an exchange of 3 s that hides behind 2 s of work, 1 s.
TEST(StepTimeline, tells_hidden_communication_from_exposed) {
  StepShape shape = even_pipeline("1f1b", 1, 1);
  shape.stages[0] = {.forward = {works(2), starts(0, 3), works(2), awaits(0), works(1)},
                     .backward = {ends(0)},
                     .buckets = {{.reduce_s = 4.0}}};
  const StepTimeline timeline = step_timeline(shape);
  const RowTimeline& row = timeline.rows[0];
  EXPECT_NEAR(timeline.step_s, 10.0, kRounding) << "2 + 3 + 1 and the sum";
  EXPECT_NEAR(length_of(row.compute), 5.0, kRounding);
  EXPECT_NEAR(length_of(row.hidden), 2.0, kRounding);
  EXPECT_NEAR(length_of(row.exposed), 1.0 + 4.0, kRounding);
}

TEST(StepTimeline, has_the_sums_of_the_prediction) {
  for (const std::string schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
    SCOPED_TRACE(schedule);
    StepShape shape = even_pipeline(schedule, 4, 8);
    shape.link = {.piece_s = 0.1, .rows_s = 0.3};
    shape.message_s = 0.01;
    for (StageTimes& stage : shape.stages) stage = one_layer();
    const StepPrediction step = predict_step(shape, 1.0);
    const StepTimeline timeline = step_timeline(shape);
    EXPECT_NEAR(timeline.step_s, step.step_s, kRounding);
    for (size_t row = 0; row < timeline.rows.size(); ++row) {
      const RowTimeline& one = timeline.rows[row];
      EXPECT_NEAR(length_of(one.compute), step.rows[row].compute_s, kRounding);
      EXPECT_NEAR(length_of(one.exposed), step.rows[row].exposed_s, kRounding);
      EXPECT_NEAR(timeline.step_s - length_of(one.compute) - length_of(one.exposed), step.rows[row].idle_s, kRounding);
      EXPECT_NEAR(common_length(one.compute, one.exposed), 0.0, kRounding);
    }
  }
}

// Of 4 rows and 8 micro-batches of 1 + 2 s: the last row begins after 3 s and works 24 s; the gradients of its inputs still go on
// for 3 s, but its weight gradients take longer. With one micro-batch they do not: 3 + 1 + 1 + 3.
TEST(LeastStep, is_what_the_rows_and_the_way_through_them_need) {
  StepShape shape = even_pipeline("1f1b", 4, 8);
  EXPECT_NEAR(least_step_s(shape), 3 + 24, kRounding);
  EXPECT_NEAR(least_step_s(even_pipeline("1f1b", 4, 1)), 3 + 2 + 3, kRounding);
  shape.tail_s = {0.0, 0.5, 0.0, 0.25};
  shape.tail_latency_s = 0.125;
  EXPECT_NEAR(least_step_s(shape), 27.625, kRounding);
  shape.stages[2].buckets = {{.reduce_s = 20.0, .add_s = 0.0, .values_s = 30.0}};
  shape.link.burst_s = 1.0;
  EXPECT_NEAR(least_step_s(shape), 49.625, kRounding) << "the link of row 2";
}

// Stages, links and sums drawn anew each time.
TEST(LeastStep, is_never_more_than_the_prediction) {
  const Random random(11, "least step", 0);
  uint64_t drawn = 0;
  const auto draw = [&](double most) { return most * random.uniform(drawn++); };
  double nearest = 0.0;
  for (int trial = 0; trial < 40; ++trial) {
    for (const std::string schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
      StepShape shape = even_pipeline(schedule, trial % 2 == 0 ? 2 : 4, 8);
      const double slow = draw(2.0);
      for (StageTimes& stage : shape.stages) {
        stage.forward = {{PartKind::await_values, 0.0, 0.0, 0},
                         works(draw(2.0)),
                         starts(0, draw(slow), 0.1),
                         awaits(0),
                         works(draw(1.0))};
        stage.backward = {works(draw(1.0)), starts(0, draw(slow)), awaits(0),
                          works(draw(2.0)), later(draw(2.0)),      ends(0)};
        stage.buckets = {{.reduce_s = draw(4.0), .add_s = draw(0.5), .values_s = draw(4.0)}};
      }
      for (double& tail : shape.tail_s) tail = draw(1.0);
      shape.link = {.piece_s = 0.1, .burst_s = draw(1.0), .rows_s = draw(0.5), .contention = draw(0.3)};
      const double least = least_step_s(shape);
      for (const bool overlap : {false, true}) {
        const double step = predict_step(shape, 1.0, overlap).step_s;
        ASSERT_LE(least, step * (1 + kRounding)) << schedule << ", trial " << trial;
        nearest = std::max(nearest, least / step);
      }
    }
  }
  EXPECT_GT(nearest, 0.8) << "a bound that says something";
}

TEST(TimelineSvg, has_a_row_of_bars_for_each_row_and_a_safe_title) {
  const StepTimeline timeline = {.step_s = 0.01,
                                 .rows = {{.compute = {{0.0, 0.005}}, .exposed = {{0.005, 0.0075}}, .hidden = {}},
                                          {.compute = {{0.005, 0.01}}, .exposed = {}, .hidden = {{0.006, 0.01}}}}};
  const std::string svg = timeline_svg(timeline, "a < b & c");
  EXPECT_NE(svg.find("width=\"800\""), std::string::npos);
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  // The bars are 716 pixels long from 64 on: half of them is 358, and 16 pixels tall from 76 and from 106 on.
  EXPECT_NE(svg.find("<path class=\"c\" d=\"M64 92H64V76H422V92z\"/>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("<path class=\"c\" d=\"M64 122H422V106H780V122z\"/>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("<path class=\"x\" d=\"M64 92H64V76H601V92z\"/>"), std::string::npos) << "exposed above compute";
  for (const char* text :
       {"compute", "exposed communication", "hidden communication", "bubble", "row 0", "row 1", "ms"}) {
    EXPECT_NE(svg.find(std::string(">") + text + "<"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace cadre::rank_clock_test
