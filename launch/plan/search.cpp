// SPDX-License-Identifier: Apache-2.0
// cadre plan search: the grid, schedule, exchange and recomputing with which a job of a given size is predicted to be fastest.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "launch/command.hpp"
#include "launch/plan/loads.hpp"
#include "launch/plan/memory.hpp"
#include "launch/plan/planned_job.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/observe/process_memory.hpp"
#include "runtime/plan/predict_step.hpp"
#include "runtime/schedule/run_program.hpp"

namespace cadre {
namespace {

struct PlanSearchArguments : TimedJob {
  double limit_gib = 0;
  int64_t show = 8;
};

struct Candidate {
  RunConfig config;
  StepPrediction step;
  std::string strategy;
  size_t bytes = 0;  // of the rank that needs most
};

std::vector<int64_t> divisors_of(int64_t number, int64_t most) {
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d <= std::min(number, most); ++d) {
    if (number % d == 0) divisors.push_back(d);
  }
  return divisors;
}

class Search {
 public:
  Search(const PlanSearchArguments& options, const RunConfig& config, const Machine& machine)
      : options_(options), config_(config), machine_(machine), topology_(topology_of(options)) {}

  // All that can run and fit, the fastest first.
  std::vector<Candidate> run() {
    for (const int64_t pipeline : divisors_of(options_.ranks, config_.model.num_hidden_layers)) {
      for (const int64_t expert : divisors_of(options_.ranks / pipeline, config_.model.n_routed_experts)) {
        RunConfig grid = config_;
        grid.parallel.pipeline = pipeline;
        grid.parallel.expert = expert;
        grid.exchange.strategy = "auto";
        for (const std::string& schedule : possible_schedules(grid)) {
          grid.parallel.schedule = schedule;
          consider(grid);
        }
      }
    }
    std::ranges::stable_sort(found_, {}, [](const Candidate& one) { return one.step.step_s; });
    return std::move(found_);
  }

  int64_t num_too_large() const { return num_too_large_; }

 private:
  // With the least recomputing that fits, since all of it takes time.
  void consider(RunConfig config) {
    size_t bytes = 0;
    for (const char* recompute : {"none", "activations", "every:2", "layer"}) {
      config.train.recompute = recompute;
      try {
        check(config, topology_.num_ranks());
        bytes = plan_of_largest(config, topology_).plan.total_bytes();
      } catch (const Error&) {
        return;  // the model, the batch or the ranks allow no such grid
      }
      if (fits(bytes)) break;
    }
    if (!fits(bytes)) {
      ++num_too_large_;
      return;
    }
    const StepShape shape =
        shape_step(config, topology_, machine_,
                   skew_of_loads(options_.loads, config.model, static_cast<int>(config.parallel.expert)));
    found_.push_back(
        {config, predict_step(shape, machine_.peak_gflops(), config.parallel.overlap), shape.strategy, bytes});
  }

  bool fits(size_t bytes) const {
    return options_.limit_gib <= 0.0 || static_cast<double>(bytes) <= options_.limit_gib * 1024.0 * kMiB;
  }

  const PlanSearchArguments& options_;
  const RunConfig& config_;
  const Machine& machine_;
  Topology topology_;
  std::vector<Candidate> found_;
  int64_t num_too_large_ = 0;
};

double gib(size_t bytes) { return static_cast<double>(bytes) / (1024.0 * kMiB); }
double percent_of(double part, double whole) { return whole > 0.0 ? 100.0 * part / whole : 0.0; }

nlohmann::json to_json(const Candidate& one) {
  const ParallelConfig& parallel = one.config.parallel;
  return {{"pipeline", parallel.pipeline},
          {"expert", parallel.expert},
          {"schedule", parallel.schedule},
          {"exchange", one.strategy},
          {"recompute", one.config.train.recompute},
          {"step_ms", one.step.step_s * 1e3},
          {"exposed_ms", one.step.exposed_s * 1e3},
          {"idle_ms", one.step.idle_s * 1e3},
          {"tokens_per_s", one.step.tokens_per_s},
          {"mfu", one.step.mfu},
          {"bytes", one.bytes}};
}

void print_candidates(const std::vector<Candidate>& found, size_t most) {
  fmt::print("{:>8} {:>6}  {:<10} {:<12} {:<11} {:>10} {:>12} {:>6} {:>9} {:>6} {:>9}\n", "pipeline", "expert",
             "schedule", "exchange", "recompute", "step ms", "tokens/s", "MFU %", "exposed %", "idle %", "GiB");
  for (size_t i = 0; i < std::min(found.size(), most); ++i) {
    const Candidate& one = found[i];
    fmt::print("{:>8} {:>6}  {:<10} {:<12} {:<11} {:>10.1f} {:>12.0f} {:>6.2f} {:>9.1f} {:>6.1f} {:>9.2f}\n",
               one.config.parallel.pipeline, one.config.parallel.expert, one.config.parallel.schedule, one.strategy,
               one.config.train.recompute, one.step.step_s * 1e3, one.step.tokens_per_s, 100.0 * one.step.mfu,
               percent_of(one.step.exposed_s, one.step.step_s), percent_of(one.step.idle_s, one.step.step_s),
               gib(one.bytes));
  }
  const Candidate& best = found.front();
  fmt::print(
      "best: parallel.pipeline={} parallel.expert={} parallel.schedule={} exchange.strategy={} train.recompute={}\n",
      best.config.parallel.pipeline, best.config.parallel.expert, best.config.parallel.schedule, best.strategy,
      best.config.train.recompute);
}

void run_plan_search(const PlanSearchArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  const Machine machine = machine_of(options);
  const RunConfig config = load_run_config(options.run_file, options.overrides);
  Search search(options, config, machine);
  const std::vector<Candidate> found = search.run();
  CADRE_CHECK(!found.empty(),
              search.num_too_large() > 0
                  ? fmt::format("none of {} grids and schedules fits into --limit {}", search.num_too_large(),
                                options.limit_gib)
                  : fmt::format("no grid of --ranks = {} can run this model and batch", options.ranks),
              "more ranks, or more train.micro_batches: cadre plan memory says what needs most");
  fmt::print("{} ranks on {} hosts: {} grids and schedules, {} more too large\n", options.ranks, options.hosts,
             found.size(), search.num_too_large());
  print_candidates(found, static_cast<size_t>(options.show));
  if (options.json.empty()) return;
  nlohmann::json report = {{"plan", "search"},
                           {"ranks", options.ranks},
                           {"hosts", options.hosts},
                           {"too_large", search.num_too_large()},
                           {"candidates", nlohmann::json::array()}};
  for (const Candidate& one : found) report["candidates"].push_back(to_json(one));
  write_text_file(options.json, report.dump() + "\n");
}

}  // namespace

Command plan_search_command() {
  const auto options = std::make_shared<PlanSearchArguments>();
  Command command = timed_job_command(
      "search", "finds the grid, schedule, exchange and recomputing that are predicted to be fastest", *options,
      {{"limit", &options->limit_gib, at_least(0), "memory of a rank, in GiB; 0: no limit"},
       {"show", &options->show, at_least(1), "how many are printed"}});
  command.run = [options](const Job& job) { run_plan_search(*options, job); };
  return command;
}

}  // namespace cadre
