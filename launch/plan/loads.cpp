// SPDX-License-Identifier: Apache-2.0
#include "launch/plan/loads.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/observe/metrics_file.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// The counts of a run, layer by layer, summed over its steps.
ExpertLoads loads_of_run(const fs::path& metrics) {
  std::map<int, std::vector<double>> sums;
  for (const LoggedStep& step : read_metrics(metrics)) {
    for (const LayerLoad& layer : step.layers) {
      std::vector<double>& sum = sums[layer.layer];
      sum.resize(std::max(sum.size(), layer.counts.size()), 0.0);
      for (size_t expert = 0; expert < layer.counts.size(); ++expert) {
        sum[expert] += static_cast<double>(layer.counts[expert]);
      }
    }
  }
  CADRE_CHECK(!sums.empty(), fmt::format("{}: no step with experts", metrics.string()),
              "--loads is a JSON file, the folder of a run, or its metrics.jsonl");
  ExpertLoads loads;
  for (auto& [layer, sum] : sums) {
    CADRE_CHECK(loads.weight.empty() || sum.size() == loads.weight.front().size(),
                fmt::format("{}: layer {} has {} experts, others have {}", metrics.string(), layer, sum.size(),
                            loads.weight.front().size()),
                "all layers have the same number");
    loads.layers.push_back(layer);
    loads.weight.push_back(std::move(sum));
  }
  return loads;
}

}  // namespace

ExpertLoads read_loads(const std::string& argument) {
  CADRE_CHECK(!argument.empty(), "--loads is missing", "a JSON file, the folder of a run, or its metrics.jsonl");
  if (fs::is_directory(argument)) return loads_of_run(fs::path(argument) / "metrics.jsonl");
  if (fs::path(argument).extension() == ".jsonl") return loads_of_run(argument);
  return loads_from_json(read_json_file(argument), argument);
}

LoadSkew skew_of_loads(const std::string& argument, const RunConfig& config, int group, int ranks_a_host) {
  if (argument.empty()) return {};
  const ModelConfig& model = config.model;
  const ExpertLoads loads = read_loads(argument);
  CADRE_CHECK(
      loads.num_experts() == model.n_routed_experts,
      fmt::format("--loads {}: {} experts, the model has {}", argument, loads.num_experts(), model.n_routed_experts),
      "name a run of this model");
  CADRE_CHECK(!loads.layers.empty(), fmt::format("--loads {}: the layers are not named", argument),
              "name the folder of a run");
  return skew_of(loads.layers, loads.weight, model.num_experts_per_tok, group,
                 ranks_that_share(config, group, ranks_a_host));
}

}  // namespace cadre
