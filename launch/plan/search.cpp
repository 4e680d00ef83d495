// SPDX-License-Identifier: Apache-2.0
// cadre plan search: the grid, schedule, exchange, micro-batches and recomputing with which a job of a given size is predicted to be fastest.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <memory>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "launch/command.hpp"
#include "launch/plan/grid_search.hpp"
#include "launch/plan/planned_job.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/observe/process.hpp"

namespace cadre {
namespace {

struct PlanSearchArguments : TimedJob {
  double limit_gib = 0;
  int64_t show = 8;
  bool exhaustive = false;
  bool keep_micro_batches = false;
};

double gib(size_t bytes) { return static_cast<double>(bytes) / (1024.0 * kMiB); }
double percent_of(double part, double whole) { return whole > 0.0 ? 100.0 * part / whole : 0.0; }

nlohmann::json to_json(const GridCandidate& one) {
  const ParallelConfig& parallel = one.config.parallel;
  return {{"pipeline", parallel.pipeline},
          {"expert", parallel.expert},
          {"schedule", parallel.schedule},
          {"micro_batches", one.config.train.micro_batches},
          {"exchange", one.strategy},
          {"recompute", one.config.train.recompute},
          {"shard_gradients", parallel.shard_gradients},
          {"step_ms", one.step.step_s * 1e3},
          {"exposed_ms", one.step.exposed_s * 1e3},
          {"idle_ms", one.step.idle_s * 1e3},
          {"tokens_per_s", one.step.tokens_per_s},
          {"mfu", one.step.mfu},
          {"bytes", one.bytes}};
}

void print_candidates(const std::vector<GridCandidate>& fastest) {
  fmt::print("{:>8} {:>6}  {:<10} {:>13}  {:<12} {:<11} {:<9} {:>10} {:>12} {:>6} {:>9} {:>6} {:>9}\n", "pipeline",
             "expert", "schedule", "micro-batches", "exchange", "recompute", "gradients", "step ms", "tokens/s",
             "MFU %", "exposed %", "idle %", "GiB");
  for (const GridCandidate& one : fastest) {
    fmt::print(
        "{:>8} {:>6}  {:<10} {:>13}  {:<12} {:<11} {:<9} {:>10.1f} {:>12.0f} {:>6.2f} {:>9.1f} {:>6.1f} {:>9.2f}\n",
        one.config.parallel.pipeline, one.config.parallel.expert, one.config.parallel.schedule,
        one.config.train.micro_batches, one.strategy, one.config.train.recompute,
        one.config.parallel.shard_gradients ? "sharded" : "whole", one.step.step_s * 1e3, one.step.tokens_per_s,
        100.0 * one.step.mfu, percent_of(one.step.exposed_s, one.step.step_s),
        percent_of(one.step.idle_s, one.step.step_s), gib(one.bytes));
  }
  const GridCandidate& best = fastest.front();
  fmt::print(
      "best: parallel.pipeline={} parallel.expert={} parallel.schedule={} train.micro_batches={} exchange.strategy={} "
      "train.recompute={}{}\n",
      best.config.parallel.pipeline, best.config.parallel.expert, best.config.parallel.schedule,
      best.config.train.micro_batches, best.strategy, best.config.train.recompute,
      best.config.parallel.shard_gradients ? " parallel.shard_gradients=true" : "");
}

void run_plan_search(const PlanSearchArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  GridSearch search = {.config = load_run_config(options.run_file, options.overrides),
                       .machine = machine_of(options),
                       .topology = topology_of(options),
                       .loads = options.loads,
                       .limit_gib = options.limit_gib,
                       .wanted = static_cast<size_t>(options.show),
                       .exhaustive = options.exhaustive,
                       .keeps_micro_batches = options.keep_micro_batches};
  shorten_warmup(search.config);
  const FoundGrids found = search_grids(search);
  CADRE_CHECK(found.fitting > 0,
              found.too_large > 0 ? fmt::format("none of {} grids, schedules and micro-batches fits into --limit {}",
                                                found.too_large, options.limit_gib)
                                  : fmt::format("no grid of --ranks = {} can run this model and batch", options.ranks),
              "more ranks, or more train.micro_batches: cadre plan memory says what needs most");
  fmt::print("{} ranks on {} hosts: {} grids, schedules and micro-batches, {} simulated, {} more too large\n",
             options.ranks, options.hosts, found.fitting, found.simulated, found.too_large);
  print_candidates(found.fastest);
  if (options.json.empty()) return;
  nlohmann::json report = {{"plan", "search"},
                           {"ranks", options.ranks},
                           {"hosts", options.hosts},
                           {"fitting", found.fitting},
                           {"simulated", found.simulated},
                           {"too_large", found.too_large},
                           {"candidates", nlohmann::json::array()}};
  for (const GridCandidate& one : found.fastest) report["candidates"].push_back(to_json(one));
  write_text_file(options.json, report.dump() + "\n");
}

}  // namespace

Command plan_search_command() {
  const auto options = std::make_shared<PlanSearchArguments>();
  Command command = timed_job_command(
      "search", "finds the grid, schedule, exchange, micro-batches and recomputing that are predicted to be fastest",
      *options,
      {{"limit", &options->limit_gib, at_least(0), "memory of a rank, in GiB; 0: no limit"},
       {"show", &options->show, at_least(1), "how many of the fastest are wanted"},
       {"keep-micro-batches", &options->keep_micro_batches, any(),
        "take train.micro_batches as it is; else also a fourth to four times of it"},
       {"exhaustive", &options->exhaustive, any(), "simulate all, also those that can be none of these"}});
  command.run = [options](const Job& job) { run_plan_search(*options, job); };
  return command;
}

}  // namespace cadre
