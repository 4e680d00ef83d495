// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/predict_step.hpp"

#include <algorithm>

#include "runtime/plan/run_passes.hpp"
#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre {
namespace {

// When a program of one rank ends whose only stage is this one; of its first ops when `num_ops` >= 0.
double alone_s(const Program& program, const StageTimes& stage, int num_ops = -1) {
  StageTimes without_sums = stage;
  without_sums.buckets.assign(stage.buckets.size(), {});
  const std::vector<StageTimes> stages = {without_sums};
  RankClock clock(program, 0, stages, {}, ClockOverlap::on);
  double now = 0.0;
  const OpList& ops = program.ops[0];
  const size_t end = num_ops < 0 ? ops.size() : static_cast<size_t>(num_ops);
  for (size_t i = 0; i < end; ++i) now = clock.run(i, now);
  return now;
}

// Each op by itself, with its weight gradients and nothing of other ops.
Cost cost_of_stage(const StageTimes& stage) {
  Cost cost;
  const Program split = zb1p(1, 1);
  cost.forward = alone_s(split, stage, 1);
  cost.backward_input = alone_s(split, stage, 2) - cost.forward;
  cost.backward_weight = alone_s(split, stage) - cost.forward - cost.backward_input;
  cost.backward = alone_s(one_f_one_b(1, 1), stage) - cost.forward;
  cost.overlapped = alone_s(pair(2, 1), stage) - cost.forward - cost.backward;
  return cost;
}

Cost mean_cost(const std::vector<Cost>& costs, const std::vector<int>& of_stages) {
  Cost mean = {0, 0, 0, 0, 0};
  const auto parts = static_cast<double>(of_stages.size());
  for (const int stage : of_stages) {
    const Cost& cost = costs[static_cast<size_t>(stage)];
    mean.forward += cost.forward / parts;
    mean.backward += cost.backward / parts;
    mean.backward_input += cost.backward_input / parts;
    mean.backward_weight += cost.backward_weight / parts;
    mean.overlapped += cost.overlapped / parts;
  }
  return mean;
}

// Idle time of the schedule as such, whose ops take what they take alone: simulated, and by its formula for the mean stage.
void add_bubbles(const StepShape& shape, StepPrediction& step) {
  const Program& program = shape.program;
  std::vector<Cost> costs;
  std::vector<int> all;
  for (const StageTimes& stage : shape.stages) {
    all.push_back(static_cast<int>(costs.size()));
    costs.push_back(cost_of_stage(stage));
  }
  Costs of_ranks;
  for (int rank = 0; rank < program.num_ranks; ++rank) {
    of_ranks.push_back(mean_cost(costs, stages_of_row(program, rank)));
  }
  step.formula_bubble_s = program.num_ranks == 1 ? 0.0 : formula_bubble(program, mean_cost(costs, all));
  if (program.num_ranks == 1) return;
  const Simulation simulation = simulate(program, of_ranks);
  for (const double idle : simulation.idle) step.schedule_bubble_s += idle / program.num_ranks;
}

// The pipeline waits for its busiest ranks; the others have so much less to do.
double skew_of_row(const StepShape& shape, int rank) {
  double seconds = 0.0;
  for (int stage = 0; stage < shape.program.num_stages; ++stage) {
    for (int i = 0; i < shape.program.num_micro_batches; ++i) {
      if (shape.program.rank_of({stage, i}) == rank) seconds += shape.skew_s[static_cast<size_t>(stage)];
    }
  }
  const double others = 1.0 - 1.0 / shape.grid.expert;
  return seconds * others;
}

}  // namespace

StepPrediction predict_step(const StepShape& shape, double peak_gflops, bool overlap) {
  const PassesRun run = run_passes(shape, overlap ? ClockOverlap::on : ClockOverlap::off, /*hands_values=*/true);
  const PassesRun serial = run_passes(shape, ClockOverlap::off, /*hands_values=*/false);
  StepPrediction step;
  step.passes_s = std::ranges::max(run.ends);
  step.serial_passes_s = std::ranges::max(serial.ends);
  double tail = 0.0;
  for (int rank = 0; rank < shape.program.num_ranks; ++rank) tail = std::max(tail, tail_of_row(shape, rank));
  step.step_s = step.passes_s + tail + shape.tail_latency_s;
  const auto rows = static_cast<double>(run.clocks.size());
  for (size_t row = 0; row < run.clocks.size(); ++row) {
    const RankClock& clock = run.clocks[row];
    const auto rank = static_cast<int>(row);
    const double skew = std::min(skew_of_row(shape, rank), clock.compute_s());
    const RowSpans spans = spans_of_row(shape, run, rank);
    const std::vector<ClockSpan> exchanges = union_of(clock.exchanges());
    RankPrediction& one = step.rows.emplace_back();
    one.compute_s = clock.compute_s() - skew + tail_of_row(shape, rank);
    one.exposed_s = length_of(spans.exposed) + skew + shape.tail_latency_s;
    one.idle_s = std::max(0.0, step.step_s - one.compute_s - one.exposed_s);
    step.compute_s += one.compute_s / rows;
    step.exposed_s += one.exposed_s / rows;
    step.idle_s += one.idle_s / rows;
    step.communication_s += (length_of(spans.flights) + skew + shape.tail_latency_s) / rows;
    step.exchange_s += (length_of(exchanges) + skew) / rows;
    step.exchange_hidden_s += (length_of(exchanges) - common_length(exchanges, spans.exposed)) / rows;
    step.skew_s += skew / rows;
  }
  step.hidden_s = step.communication_s - step.exposed_s;
  add_bubbles(shape, step);
  step.tokens_per_s = shape.tokens_of_step / step.step_s;
  step.mfu = step.tokens_per_s * shape.flops_per_token / (peak_gflops * 1e9 * shape.grid.num_ranks());
  return step;
}

}  // namespace cadre
