// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/step_changes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
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

constexpr std::array<std::string_view, 3> kNames = {"gate", "experts", "all"};
constexpr const char* kTrainStagesHint =
    "stages are gate, experts and all, each but the last with its steps: gate:100,experts:200,all";

void require(bool condition, const std::string& stages, const std::string& why) {
  CADRE_CHECK(condition, fmt::format("train.stages = \"{}\": {}", stages, why), kTrainStagesHint);
}

TrainStage parse_stage(const std::string& text, const std::string& stages) {
  const size_t colon = std::min(text.find(':'), text.size());
  const auto name = std::ranges::find(kNames, std::string_view(text).substr(0, colon));
  require(name != kNames.end(), stages, fmt::format("{} is not a stage", text));
  TrainStage stage{static_cast<Trained>(name - kNames.begin()), 0};
  if (colon == text.size()) return stage;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, stage.steps);
  require(error == std::errc() && stop == end && stage.steps >= 1, stages,
          fmt::format("{} has no number of steps, allowed: integer >= 1", text));
  return stage;
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

ModelPart part_of_parameter(std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has(".experts.") || has(".shared_expert")) return ModelPart::experts;
  return has(".gate.") ? ModelPart::gate : ModelPart::rest;
}

std::string_view name_of(Trained trained) { return kNames[static_cast<size_t>(trained)]; }

std::vector<TrainStage> train_stages(const TrainConfig& config) {
  if (config.stages.empty()) return {{Trained::all, config.steps}};
  std::vector<TrainStage> stages;
  for (const std::string& text : words_of(config.stages)) stages.push_back(parse_stage(text, config.stages));
  require(!stages.empty(), config.stages, "it names no stage");
  int64_t before = 0;
  for (size_t i = 0; i + 1 < stages.size(); ++i) {
    require(stages[i].steps >= 1, config.stages, fmt::format("{} has no number of steps", name_of(stages[i].trained)));
    before += stages[i].steps;
  }
  require(before < config.steps, config.stages,
          fmt::format("{} steps before the last stage, train.steps = {}", before, config.steps));
  const int64_t left = config.steps - before;
  require(stages.back().steps == 0 || stages.back().steps == left, config.stages,
          fmt::format("{} steps are left for the last stage", left));
  stages.back().steps = left;
  return stages;
}

Trained trained_at(const std::vector<TrainStage>& stages, int64_t step) {
  for (const TrainStage& stage : stages) {
    if (step < stage.steps) return stage.trained;
    step -= stage.steps;
  }
  return stages.back().trained;
}

int64_t updates_of(const std::vector<TrainStage>& stages, ModelPart part, int64_t step) {
  int64_t updates = 0;
  int64_t left = step + 1;
  for (size_t i = 0; i < stages.size(); ++i) {
    const int64_t here = i + 1 == stages.size() ? left : std::min(left, stages[i].steps);
    if (trains(stages[i].trained, part)) updates += here;
    left -= here;
  }
  return updates;
}

}  // namespace cadre
