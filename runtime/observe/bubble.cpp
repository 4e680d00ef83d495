// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/bubble.hpp"

#include <algorithm>
#include <numeric>
#include <span>

#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/simulate.hpp"

namespace cadre {
namespace {

constexpr double kMsPerNs = 1e-6;

double per_step(int64_t nanoseconds, const StepSums& sums) {
  return static_cast<double>(nanoseconds) * kMsPerNs / static_cast<double>(sums.num_steps);
}

// What ops cost on some ranks, in ms; one that did not run costs what its parts do.
Cost measured_cost(std::span<const StepSums> ranks) {
  const auto mean = [&](const char* phase) {
    OpSums all;
    for (const StepSums& rank : ranks) {
      const auto found = rank.ops.find(phase);
      if (found == rank.ops.end()) continue;
      all.busy += found->second.busy;
      all.count += found->second.count;
    }
    return all.count == 0 ? -1.0 : static_cast<double>(all.busy) * kMsPerNs / static_cast<double>(all.count);
  };
  const auto known_or = [](double value, double otherwise) { return value >= 0 ? value : std::max(otherwise, 0.0); };
  Cost cost = {mean("forward"), mean("backward"), mean("backward input"), mean("backward weight"), mean("overlapped")};
  const bool has_halves = cost.backward_input >= 0 && cost.backward_weight >= 0;
  cost.backward =
      known_or(cost.backward, has_halves ? cost.backward_input + cost.backward_weight : cost.overlapped - cost.forward);
  cost.forward = known_or(cost.forward, cost.overlapped - cost.backward);
  cost.backward_input = known_or(cost.backward_input, cost.backward / 2);
  cost.backward_weight = known_or(cost.backward_weight, cost.backward - cost.backward_input);
  cost.overlapped = known_or(cost.overlapped, cost.forward + cost.backward);
  return cost;
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// From the first pass on any rank to the end of the last, less what a rank works in it, in ms a step.
double measured_idle(const std::vector<StepSums>& sums) {
  double passes = 0;
  for (size_t step = 0; step < sums.front().passes.size(); ++step) {
    Interval all = sums.front().passes[step];
    for (const StepSums& rank : sums) {
      all = {std::min(all.begin, rank.passes[step].begin), std::max(all.end, rank.passes[step].end)};
    }
    passes += per_step(all.end - all.begin, sums.front());
  }
  std::vector<double> idle;
  for (const StepSums& rank : sums) {
    idle.push_back(passes);
    for (const auto& [phase, op] : rank.ops) idle.back() -= per_step(op.busy, rank);
  }
  return mean_of(idle);
}

}  // namespace

std::optional<Bubble> bubble_of(const TracedRun& run, const std::vector<StepSums>& sums) {
  const std::vector<std::string> known = schedule_names();
  if (run.pipeline == 1 || std::ranges::find(known, run.schedule) == known.end()) return std::nullopt;
  const Program program = make_program(run.schedule, run.pipeline, run.num_micro_batches);
  Costs costs;
  for (int row = 0; row < run.pipeline; ++row) {
    costs.push_back(
        measured_cost(std::span(sums).subspan(static_cast<size_t>(row * run.data), static_cast<size_t>(run.data))));
  }
  return Bubble{.measured = measured_idle(sums),
                .simulated = mean_of(simulate(program, costs).idle),
                .formula = formula_bubble(program, measured_cost(sums)),
                .formula_text = formula_text(program)};
}

}  // namespace cadre
