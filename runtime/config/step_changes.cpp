// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/step_changes.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr std::array<std::string_view, 11> kTrainKeys = {
    "train.batch",    "train.micro_batches", "train.learning_rate", "train.min_learning_rate",
    "train.schedule", "train.weight_decay",  "train.beta1",         "train.beta2",
    "train.epsilon",  "train.grad_clip",     "data.sequence_length"};

void apply(RunConfig& config, const StepChange& change) {
  for (const Section& section : sections_of(config)) {
    for (const Field& field : section.fields) {
      if (key_prefix(section) + field.name == change.key) {
        return assign(field, change.value, fmt::format("from_step.{}.{}", change.step, key_prefix(section)));
      }
    }
  }
  throw Error(ErrorKind::internal, fmt::format("unknown key {}", change.key));
}

// A window of traced steps lies within steps of one configuration.
void cut_trace(TraceConfig& trace, int64_t first, int64_t last) {
  if (trace.first_step == 0) return;
  if (trace.first_step < first || trace.first_step > last) {
    trace.first_step = 0;
  } else {
    trace.steps = std::min(trace.steps, last - trace.first_step + 1);
  }
}

}  // namespace

bool may_change(const std::string& key) {
  return (key.starts_with("model.") && key != "model.config") || std::ranges::find(kTrainKeys, key) != kTrainKeys.end();
}

RunConfig config_at(const RunConfig& config, int64_t step) {
  RunConfig now = config;
  int64_t first = 1;
  for (const StepChange& change : config.changes) {
    if (change.step > step) continue;
    apply(now, change);
    first = std::max(first, change.step);
  }
  if (!config.changes.empty()) cut_trace(now.trace, first, last_step_like(config, step));
  return now;
}

int64_t last_step_like(const RunConfig& config, int64_t step) {
  int64_t last = config.train.steps;
  for (const StepChange& change : config.changes) {
    if (change.step > step) last = std::min(last, change.step - 1);
  }
  return last;
}

std::vector<int64_t> first_steps(const RunConfig& config) {
  std::set<int64_t> steps = {1};
  for (const StepChange& change : config.changes) {
    if (change.step <= config.train.steps) steps.insert(change.step);
  }
  return {steps.begin(), steps.end()};
}

}  // namespace cadre
