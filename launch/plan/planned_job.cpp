// SPDX-License-Identifier: Apache-2.0
#include "launch/plan/planned_job.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <iterator>
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

Command planned_job_command(std::string name, std::string summary, PlannedJob& job, std::vector<Field> own) {
  std::vector<Field> options = {{"ranks", &job.ranks, between(1, 1 << 20), "ranks of the job"},
                                {"hosts", &job.hosts, at_least(1), "hosts that they share evenly"}};
  std::ranges::move(own, std::back_inserter(options));
  options.push_back({"json", &job.json, any(), "also write the result to this file, as JSON"});
  return {.name = std::move(name),
          .summary = std::move(summary),
          .arguments = {{"RUN.toml", &job.run_file, any(), "run file; examples are in launch/configs"}},
          .overrides = &job.overrides,
          .options = std::move(options)};
}

Command timed_job_command(std::string name, std::string summary, TimedJob& job, std::vector<Field> own) {
  std::vector<Field> options = {
      {"cluster", &job.cluster, any(), "file of the machine, from cadre plan cluster"},
      {"loads", &job.loads, any(), "folder of a run whose expert loads are assumed; empty: even loads"}};
  std::ranges::move(own, std::back_inserter(options));
  return planned_job_command(std::move(name), std::move(summary), job, std::move(options));
}

Topology topology_of(const PlannedJob& job) {
  CADRE_CHECK(job.ranks % job.hosts == 0,
              fmt::format("--hosts = {}, allowed: a divisor of --ranks = {}", job.hosts, job.ranks),
              "each host has the same number of ranks");
  return Topology::uniform(static_cast<int>(job.hosts), static_cast<int>(job.ranks / job.hosts));
}

Machine machine_of(const TimedJob& job) {
  CADRE_CHECK(!job.cluster.empty(), "--cluster is missing", "cadre plan cluster RUN.toml --out C.toml measures it");
  topology_of(job);
  Machine machine = read_machine(job.cluster);
  CADRE_CHECK(job.hosts == 1 || machine.network.beta_s > 0.0,
              fmt::format("--hosts = {}, and {} has no network: network.beta_s = 0", job.hosts, job.cluster),
              "measure on ranks of several hosts, or write its alpha_s and beta_s");
  return machine;
}

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
