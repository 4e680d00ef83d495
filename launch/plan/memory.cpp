// SPDX-License-Identifier: Apache-2.0
// cadre plan memory: the memory plan of a rank of a job of any size, in one process, and what to change where it does not fit.
#include "launch/plan/memory.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/group/topology.hpp"
#include "launch/command.hpp"
#include "launch/plan/planned_job.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/observe/process.hpp"
#include "runtime/plan/row_roles.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre {

RankPlan plan_of_largest(const RunConfig& config, const Topology& topology) {
  const int ranks_of_row = topology.num_ranks() / static_cast<int>(config.parallel.pipeline);
  std::optional<RankPlan> largest;
  for (const int row : rows_to_plan(config, program_of(config))) {
    const int first = row * ranks_of_row;
    MemoryPlan plan = plan_memory(config, topology, first);
    if (!largest || plan.total_bytes() > largest->plan.total_bytes()) largest = RankPlan{first, std::move(plan)};
  }
  return *largest;
}

double least_bytes_of_largest(const RunConfig& config, const Topology& topology) {
  constexpr int64_t kShortTokens = 1024;
  constexpr double kLeastShare = 6.0 / 7.0;
  const int64_t data = topology.num_ranks() / config.parallel.pipeline;
  const int64_t tokens = largest_batch(config, static_cast<int>(data)) * config.data.sequence_length;
  RunConfig probe = config;
  probe.data.sequence_length = std::min(config.data.sequence_length, kShortTokens);
  const int64_t sequences = kShortTokens / probe.data.sequence_length;
  probe.train.batch = probe.train.micro_batches * data * sequences;
  const double times = static_cast<double>(tokens) / static_cast<double>(sequences * probe.data.sequence_length);
  if (times < 2.0) return 0.0;
  const int ranks_of_row = static_cast<int>(data);
  double most = 0.0;
  for (const int row : rows_to_plan(probe, program_of(probe))) {
    const MemoryPlan plan = plan_memory(probe, topology, row * ranks_of_row);
    const auto activations = static_cast<double>(plan.activation_bytes());
    most = std::max(most, static_cast<double>(plan.total_bytes()) + (kLeastShare * times - 1.0) * activations);
  }
  return most;
}

namespace {

struct PlanMemoryArguments : PlannedJob {
  int64_t rank = -1;
  double limit_gib = 0;
};

RankPlan plan_of(const RunConfig& config, const Topology& topology, int64_t rank) {
  if (rank < 0) return plan_of_largest(config, topology);
  return {static_cast<int>(rank), plan_memory(config, topology, static_cast<int>(rank))};
}

// What makes a rank need less, the smallest change first. Each keeps those before it.
struct Change {
  std::string key;
  std::string value;
};

std::vector<Change> changes_of(const RunConfig& config, int64_t ranks) {
  std::vector<Change> changes;
  if (!config.parallel.shard_optimizer) changes.push_back({"parallel.shard_optimizer", "true"});
  if (!config.parallel.shard_gradients) changes.push_back({"parallel.shard_gradients", "true"});
  const Recompute recompute = recompute_of(config.train);
  if (!recompute.activations) changes.push_back({"train.recompute", "activations"});
  if (recompute.every_layer == 0 && !recompute.attention) {
    if (!recompute.mla_up && has_latent_attention(config.model)) changes.push_back({"train.recompute", "mla_up"});
    changes.push_back({"train.recompute", "attention"});
  }
  for (const int every : {4, 2}) {
    if (recompute.every_layer == 0) changes.push_back({"train.recompute", fmt::format("every:{}", every)});
  }
  if (recompute.every_layer != 1) changes.push_back({"train.recompute", "layer"});
  const int64_t most =
      config.train.batch / std::max<int64_t>(1, ranks / config.parallel.pipeline);  // a sequence a rank
  for (int64_t parts = 2 * config.train.micro_batches; parts <= most; parts *= 2) {
    changes.push_back({"train.micro_batches", fmt::format("{}", parts)});
  }
  if (config.train.moments != "bf16") changes.push_back({"train.moments", "bf16"});
  for (int64_t rows = 2 * config.parallel.pipeline;
       rows <= config.model.num_hidden_layers && ranks % rows == 0 && ranks / rows >= config.parallel.expert;
       rows *= 2) {
    changes.push_back({"parallel.pipeline", fmt::format("{}", rows)});
  }
  return changes;
}

double mib(size_t bytes) { return static_cast<double>(bytes) / kMiB; }

// None where the model or the job allows no such value.
std::optional<size_t> bytes_with(const PlanMemoryArguments& options, const std::vector<std::string>& overrides,
                                 const Topology& topology) {
  RunConfig config = load_run_config(options.run_file, overrides);
  shorten_warmup(config);
  try {
    check(config, topology.num_ranks());
    return plan_of(config, topology, options.rank).plan.total_bytes();
  } catch (const Error&) {
    return std::nullopt;
  }
}

void run_plan_memory(const PlanMemoryArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  RunConfig config = load_run_config(options.run_file, options.overrides);
  shorten_warmup(config);
  check(config, static_cast<int>(options.ranks));
  const Topology topology = topology_of(options);
  CADRE_CHECK(options.rank < options.ranks,
              fmt::format("--rank = {}, allowed: integer in [-1, {}]", options.rank, options.ranks - 1),
              "-1 takes the rank that needs most");
  const RankPlan mine = plan_of(config, topology, options.rank);
  fmt::print("rank {} of {}{}\n{}", mine.rank, options.ranks,
             options.rank < 0 ? ", the largest of the first ranks of the pipeline's rows" : "", mine.plan.table());
  nlohmann::json report = {{"plan", "memory"},
                           {"ranks", options.ranks},
                           {"hosts", options.hosts},
                           {"rank", mine.rank},
                           {"lines", nlohmann::json::array()},
                           {"total_bytes", mine.plan.total_bytes()},
                           {"changes", nlohmann::json::array()}};
  for (const MemoryLine& line : mine.plan.lines)
    report["lines"].push_back({{"what", line.what}, {"bytes", line.bytes}});
  if (options.limit_gib > 0) {
    const double limit = options.limit_gib * 1024.0;
    size_t total = mine.plan.total_bytes();
    report["limit_bytes"] = static_cast<int64_t>(limit * kMiB);
    std::vector<std::string> overrides = options.overrides;
    for (const Change& change : changes_of(config, options.ranks)) {
      if (mib(total) <= limit) break;
      std::vector<std::string> changed = overrides;
      changed.push_back(change.key + "=" + change.value);
      const std::optional<size_t> bytes = bytes_with(options, changed, topology);
      if (!bytes || *bytes >= total) continue;
      overrides = std::move(changed);
      total = *bytes;
      fmt::print("  with {:<23} {:>10.1f} MiB\n", change.key + "=" + change.value, mib(total));
      report["changes"].push_back({{"key", change.key}, {"value", change.value}, {"total_bytes", total}});
    }
    report["fits"] = mib(total) <= limit;
    fmt::print("{} into {:.1f} MiB{}\n", mib(total) <= limit ? "fits" : "does not fit", limit,
               report["changes"].empty() ? "" : " with these changes together");
  }
  if (!options.json.empty()) write_text_file(options.json, report.dump() + "\n");
}

}  // namespace

Command plan_memory_command() {
  const auto options = std::make_shared<PlanMemoryArguments>();
  Command command = planned_job_command(
      "memory", "prints what a rank of a job of any size needs, and what to change where that is too much", *options,
      {{"rank", &options->rank, at_least(-1), "rank; -1: the one that needs most"},
       {"limit", &options->limit_gib, at_least(0), "memory of a rank, in GiB; 0: no limit"}});
  command.run = [options](const Job& job) { run_plan_memory(*options, job); };
  return command;
}

}  // namespace cadre
