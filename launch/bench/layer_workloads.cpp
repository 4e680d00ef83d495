// SPDX-License-Identifier: Apache-2.0
// `cadre bench layer --workload all`: what skewed routings cost beside the balanced one. Each iteration runs a step of every
// workload, so that a slow moment of the machine meets all; a workload's figure is the median of the ratios to the step of W0
// in the same iteration.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "comm/base/median.hpp"
#include "launch/bench/layer_run.hpp"

namespace cadre {
namespace {

// A layer and a workload.
struct Arm {
  LayerRun* run;
  Workload workload;
  std::string balance;
  std::vector<double> ms = {};     // by iteration; of this rank, later of the slowest
  std::vector<int64_t> rows = {};  // of this rank
};

struct ArmFigures {
  double step_ms;        // median
  double over_balanced;  // of iterations with most rows, of which a workload of bursts has few
  double row_share;      // of the rows of W0 in those
  double busiest;        // rows of the busiest rank / mean, over all iterations
};

double sum_of(const std::vector<int64_t>& values) {
  return static_cast<double>(std::accumulate(values.begin(), values.end(), int64_t{0}));
}

ArmFigures figures_of(const Communicator& world, const Arm& arm, const Arm& balanced) {
  const std::vector<int64_t> rows = wait(world.all_reduce(arm.rows, ReduceOp::sum));
  const std::vector<int64_t> balanced_rows = wait(world.all_reduce(balanced.rows, ReduceOp::sum));
  const std::vector<double> ms = wait(world.all_reduce(arm.ms, ReduceOp::max));
  const std::vector<double> balanced_ms = wait(world.all_reduce(balanced.ms, ReduceOp::max));
  const int64_t most = std::ranges::max(rows);
  std::vector<double> ratios;
  std::vector<double> full_ms;
  for (size_t i = 0; i < ms.size(); ++i) {
    if (rows[i] != most) continue;
    ratios.push_back(ms[i] / balanced_ms[i]);
    full_ms.push_back(ms[i]);
  }
  return {median_of(full_ms), median_of(ratios),
          static_cast<double>(most) * static_cast<double>(rows.size()) / sum_of(balanced_rows),
          busiest_over_mean(world, arm.rows)};
}

}  // namespace

void bench_layer_workloads(const Communicator& world, const LayerBenchOptions& options) {
  LayerRun run(world, options);
  std::unique_ptr<LayerRun> unbalanced;
  std::vector<Arm> arms;
  for (int index = 0; index < kNumWorkloads; ++index) {
    arms.push_back({&run, static_cast<Workload>(index), options.balance});
  }
  if (options.balance != "none") {
    LayerBenchOptions without = options;
    without.balance = "none";
    unbalanced = std::make_unique<LayerRun>(world, without);
    arms.push_back({unbalanced.get(), Workload::balanced, "none"});
  }
  for (int64_t i = -options.bench.warmup; i < options.bench.iterations; ++i) {
    run.draw();
    if (unbalanced) unbalanced->draw();
    const auto first = static_cast<size_t>(i + options.bench.warmup);
    for (size_t turn = 0; turn < arms.size(); ++turn) {
      Arm& arm = arms[(first + turn) % arms.size()];
      arm.run->route(arm.workload, std::max<int64_t>(0, i));
      const double ms = arm.run->rig().timed_ms([&] { arm.run->step(); });
      if (i < 0) continue;
      arm.ms.push_back(ms);
      arm.rows.push_back(arm.run->rows());
    }
  }

  nlohmann::json workloads = nlohmann::json::array();
  if (world.rank() == 0) {
    fmt::print("layer {} ranks, {} tokens a rank, hidden {}, ffn {}, {} experts, top-{}, {}, exchange {}\n",
               world.size(), options.tokens, options.hidden, options.ffn, options.experts, options.top_k,
               options.precision, run.strategy());
    fmt::print("  {:<22} balance   step ms   / W0   rows / W0   busiest / mean\n", "workload");
  }
  for (const Arm& arm : arms) {
    const ArmFigures of = figures_of(world, arm, arms.front());
    if (world.rank() != 0) continue;
    fmt::print("  {:<22} {:<7} {:9.2f}  {:.3f}       {:.3f}            {:.3f}\n", name_of(arm.workload), arm.balance,
               of.step_ms, of.over_balanced, of.row_share, of.busiest);
    workloads.push_back({{"workload", name_of(arm.workload).substr(0, 2)},
                         {"balance", arm.balance},
                         {"step_ms", of.step_ms},
                         {"over_balanced", of.over_balanced},
                         {"rows_over_balanced", of.row_share},
                         {"rows_max_over_mean", of.busiest}});
  }
  if (world.rank() != 0 || options.bench.json.empty()) return;
  write_json_report(options.bench.json, {{"bench", "layer workloads"},
                                         {"device", options.bench.device},
                                         {"ranks", world.size()},
                                         {"tokens", options.tokens},
                                         {"hidden", options.hidden},
                                         {"ffn", options.ffn},
                                         {"experts", options.experts},
                                         {"top_k", options.top_k},
                                         {"precision", options.precision},
                                         {"strategy", run.strategy()},
                                         {"workloads", workloads}});
}

}  // namespace cadre
