// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "runtime/plan/predict_step.hpp"
#include "runtime/plan/run_passes.hpp"

namespace cadre {
namespace {

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
