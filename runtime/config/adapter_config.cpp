// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/adapter_config.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

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
