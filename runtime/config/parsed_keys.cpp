// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/parsed_keys.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "comm/base/check.hpp"
#include "layers/router/task.hpp"

namespace cadre {
namespace {

std::vector<TaskType> types_of(const std::string& list, const char* key) {
  std::vector<TaskType> types;
  for (const std::string& word : words_of(list)) types.push_back(task_type_named(word, key));
  return types;
}

constexpr int64_t kMostWeight = 1'000'000;
constexpr const char* kDataMixtureHint = "example: CODING:2:data/code,MATH:1:data/math; NONE for texts without a task";

MixtureEntry entry_of(const std::string& word) {
  const size_t first = word.find(':');
  const size_t second = first == std::string::npos ? first : word.find(':', first + 1);
  CADRE_CHECK(second != std::string::npos && second + 1 < word.size(),
              fmt::format("data.mixture: \"{}\", allowed: TASK:WEIGHT:PATH", word), kDataMixtureHint);
  MixtureEntry entry;
  const std::string task = word.substr(0, first);
  if (task != "NONE" && task != "none") entry.task = static_cast<int32_t>(task_type_named(task, "data.mixture"));
  const char* end = word.data() + second;
  const auto [rest, error] = std::from_chars(word.data() + first + 1, end, entry.weight);
  CADRE_CHECK(error == std::errc() && rest == end && entry.weight >= 1 && entry.weight <= kMostWeight,
              fmt::format("data.mixture: weight \"{}\", allowed: integer in [1, {}]",
                          word.substr(first + 1, second - first - 1), kMostWeight),
              kDataMixtureHint);
  entry.path = word.substr(second + 1);
  return entry;
}

FixedFormat fixed_format(const std::string& name) {
  if (name == "fp32") return FixedFormat::fp32;
  return name == "fp8" ? FixedFormat::fp8 : FixedFormat::bf16;
}

std::vector<std::string> adapter_targets(const RunConfig& config) {
  const std::vector<std::string> known = projections_of(config.model);
  if (config.adapter.targets == "all") return known;
  const std::vector<std::string> targets = words_of(config.adapter.targets);
  const auto has = [&](std::string_view name) { return std::ranges::find(targets, name) != targets.end(); };
  for (const std::string& target : targets) {
    CADRE_CHECK(std::ranges::find(known, target) != known.end(),
                fmt::format("adapter.targets = \"{}\": this model has no {}, allowed: all, or some of {}",
                            config.adapter.targets, target, fmt::join(known, ",")),
                "all takes each of them");
  }
  CADRE_CHECK(!targets.empty(), "adapter.targets = \"\", allowed: all, or names of projections",
              fmt::format("this model has {}", fmt::join(known, ",")));
  const std::vector<std::string> of_experts = expert_projections(config.model);
  if (config.model.ffn_gate && !of_experts.empty()) {
    const std::string& gate = of_experts[0];
    const std::string& up = of_experts[1];
    CADRE_CHECK(has(gate) == has(up),
                fmt::format("adapter.targets = \"{}\" has one of {} and {}, allowed: both or none",
                            config.adapter.targets, gate, up),
                "PEFT opens adapters of experts only where they have both: transformers keeps them as one tensor");
  }
  return targets;
}

}  // namespace

TaskOptions task_options(const TaskConfig& config) {
  TaskOptions options;
  options.keywords = {words_of(config.reasoning), words_of(config.coding), words_of(config.math),
                      words_of(config.general), words_of(config.multimodal)};
  options.priority = types_of(config.priority, "task.priority");
  std::vector<TaskType> sorted = options.priority;
  std::ranges::sort(sorted);
  CADRE_CHECK(sorted.size() == kNumTaskTypes && std::ranges::adjacent_find(sorted) == sorted.end(),
              fmt::format("task.priority = {}, allowed: each task once", config.priority),
              fmt::format("the default is {}", kTaskPriority));
  return options;
}

ComplexityTable complexity_table(const TaskConfig& config) {
  return {.experts = {config.k_simple, config.k_medium, config.k_complex, config.k_critical}, .most = config.k_max};
}

Recompute recompute_of(const TrainConfig& config) {
  constexpr std::string_view kEvery = "every:";
  const std::string_view text = config.recompute;
  if (text == "none") return {};
  if (text == "activations") return {.activations = true};
  if (text == "mla_up") return {.activations = true, .mla_up = true};
  if (text == "attention") return {.activations = true, .attention = true};
  if (text == "layer") return {.activations = true, .every_layer = 1};
  Recompute recompute = {.activations = true};
  bool valid = text.starts_with(kEvery);
  if (valid) {
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + kEvery.size(), end, recompute.every_layer);
    valid = error == std::errc() && stop == end && recompute.every_layer >= 1;
  }
  CADRE_CHECK(
      valid,
      fmt::format(
          "train.recompute = {}, allowed: none | activations | mla_up | attention | layer | every:N with N >= 1", text),
      "layer needs least memory, and about a third more time; every:2 half of that");
  return recompute;
}

std::vector<MixtureEntry> mixture_entries(const DataConfig& config) {
  if (config.mixture.empty()) return {{.path = config.path}};
  CADRE_CHECK(config.path.empty(),
              fmt::format("data.path = {} with data.mixture = {}, allowed: one of them", config.path, config.mixture),
              "data.path=\"\" or data.mixture=\"\" on the command line removes one");
  std::vector<MixtureEntry> entries;
  for (const std::string& word : words_of(config.mixture)) entries.push_back(entry_of(word));
  CADRE_CHECK(!entries.empty(), fmt::format("data.mixture = \"{}\", allowed: TASK:WEIGHT:PATH", config.mixture),
              kDataMixtureHint);
  return entries;
}

AdapterOptions adapter_options(const RunConfig& config) {
  const AdapterConfig& adapter = config.adapter;
  if (adapter.rank == 0) return {};
  return {.rank = adapter.rank,
          .alpha = adapter.alpha,
          .dropout = adapter.dropout,
          .targets = adapter_targets(config),
          .format = fixed_format(adapter.weights)};
}

void check_adapters(const RunConfig& config) {
  if (!has_adapters(config)) return;
  const auto require = [](bool condition, const std::string& what, const std::string& hint) {
    CADRE_CHECK(condition, what + " with adapter.rank > 0", hint);
  };
  adapter_options(config);
  require(!config.train.init.empty(), "train.init = \"\", allowed: a directory",
          "adapters change the weights of a model that is there: train.init=DIR");
  require(config.train.stages.empty(), fmt::format("train.stages = {}, allowed: \"\"", config.train.stages),
          "the weights below adapters do not train");
  require(config.compute.device == "cpu", fmt::format("compute.device = {}, allowed: cpu", config.compute.device),
          "devices multiply no bf16 weights that are kept without an fp32 copy");
  require(config.compute.precision != "fp8",
          fmt::format("compute.precision = {}, allowed: fp32 | bf16", config.compute.precision),
          "adapter.weights=fp8 keeps weights in fp8");
}

}  // namespace cadre
