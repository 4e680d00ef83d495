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

// Seconds of one micro-batch at a stage, and of the sums and values of a step.
struct StageLoad {
  double forward = 0.0;
  double backward = 0.0;  // of its work that is not deferred
  double deferred = 0.0;
  double link = 0.0;    // exchanges of both passes
  double adds = 0.0;    // of a step or of a pass, after deferred work
  double sums = 0.0;    // of a step or, as adds, of a pass; on the link
  double values = 0.0;  // of a step, on the link
};

StageLoad load_of(const StageTimes& stage) {
  StageLoad load;
  const auto add_pass = [&](const PassParts& parts, double& work) {
    for (const PassPart& part : parts) {
      if (part.kind == PartKind::compute) work += part.seconds;
      if (is_deferred(part)) load.deferred += part.seconds;
      if (part.kind == PartKind::start) load.link += part.seconds;
    }
  };
  add_pass(stage.forward, load.forward);
  add_pass(stage.backward, load.backward);
  for (const BucketTraffic& bucket : stage.buckets) {
    load.adds += bucket.add_s;
    load.sums += bucket.reduce_s;
    load.values += bucket.values_s;
  }
  return load;
}

int passes_on(const Program& program, int stage, int row) {
  int passes = 0;
  for (const std::vector<int>& route : program.routes) {
    passes += route[static_cast<size_t>(stage)] == row ? program.micro_batches_a_route() : 0;
  }
  return passes;
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

double least_step_s(const StepShape& shape) {
  const Program& program = shape.program;
  std::vector<StageLoad> loads;
  std::vector<double> forward_before = {0.0};  // of all stages before one
  std::vector<double> backward_before = {0.0};
  for (const StageTimes& stage : shape.stages) {
    const StageLoad& load = loads.emplace_back(load_of(stage));
    forward_before.push_back(forward_before.back() + load.forward);
    backward_before.push_back(backward_before.back() + load.backward);
  }
  double passes_s = 0.0;
  double tail_s = 0.0;
  for (int row = 0; row < program.num_ranks; ++row) {
    const std::vector<int> stages = stages_of_row(program, row);
    double pipelined = 0.0;
    double postponed = 0.0;
    double link = 0.0;
    for (const int stage : stages) {
      const StageLoad& load = loads[static_cast<size_t>(stage)];
      const auto passes = static_cast<double>(passes_on(program, stage, row));
      pipelined += passes * (load.forward + load.backward);
      const double sums = program.sums_each_pass ? passes : 1.0;
      postponed += passes * load.deferred + sums * load.adds;
      link += passes * load.link + sums * load.sums + load.values;
    }
    // The first pass of a row is of its first stage, or of a later one that more stages stand before.
    const auto first = static_cast<size_t>(stages.front());
    const double end = forward_before[first] + pipelined + std::max(postponed, backward_before[first]);
    passes_s = std::max({passes_s, end, link - shape.link.burst_s});
    tail_s = std::max(tail_s, tail_of_row(shape, row));
  }
  return passes_s + tail_s + shape.tail_latency_s;
}

}  // namespace cadre
