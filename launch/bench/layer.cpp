// SPDX-License-Identifier: Apache-2.0
// `cadre bench layer`: one mixture-of-experts layer, forward, backward and optimiser step, beside the time of exactly
// the same products alone, measured in turn in the same process on fresh random tokens.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <vector>

#include "launch/bench/layer_run.hpp"

namespace cadre {
namespace {

nlohmann::json to_json(const Summary& summary) {
  return {{"min", summary.min}, {"p50", summary.p50}, {"p95", summary.p95}};
}

void bench_layer(const Communicator& world, const LayerBenchOptions& options) {
  LayerRun bench(world, options);
  std::vector<int64_t> rows;
  const auto draw = [&](int64_t iteration) {
    bench.draw();
    if (options.workload != "none") bench.route(workload_named(options.workload), iteration);
  };
  const auto run_step = [&] {
    bench.step();
    rows.push_back(bench.rows());
  };
  const std::vector<TimesOverRanks> times = bench.rig().measure(draw, {run_step, [&] { bench.floor(); }});
  const TimesOverRanks& step = times[0];
  const TimesOverRanks& floor = times[1];
  const double busiest = busiest_over_mean(world, rows);
  if (world.rank() != 0) return;

  const double ratio = step.slowest.p50 / floor.slowest.p50;
  fmt::print("layer {} ranks, {} tokens a rank, hidden {}, ffn {}, {} experts, top-{}, {}, exchange {}, balance {}\n",
             world.size(), options.tokens, options.hidden, options.ffn, options.experts, options.top_k,
             options.precision, bench.strategy(), options.balance);
  fmt::print("  step        min {:8.2f}  p50 {:8.2f}  p95 {:8.2f} ms   worst rank {}\n", step.slowest.min,
             step.slowest.p50, step.slowest.p95, step.worst_rank);
  fmt::print("  gemm floor  min {:8.2f}  p50 {:8.2f}  p95 {:8.2f} ms   {:.1f} GFLOP, {:.0f} GFLOP/s a rank\n",
             floor.slowest.min, floor.slowest.p50, floor.slowest.p95, bench.gflop(),
             bench.gflop() / (floor.slowest.p50 * 1e-3));
  fmt::print("  ratio to floor {:.3f}; rows of the busiest rank / mean {:.3f}\n", ratio, busiest);
  if (options.bench.json.empty()) return;

  nlohmann::json json = {
      {"bench", "layer"},
      {"device", options.bench.device},
      {"ranks", world.size()},
      {"tokens", options.tokens},
      {"hidden", options.hidden},
      {"ffn", options.ffn},
      {"experts", options.experts},
      {"top_k", options.top_k},
      {"precision", options.precision},
      {"strategy", bench.strategy()},
      {"balance", options.balance},
      {"step_ms", to_json(step.slowest)},
      {"gemm_floor_ms", floor.slowest.p50},
      {"gflop", bench.gflop()},
      {"ratio_to_floor", ratio},
      {"rows_max_over_mean", busiest},
      {"workload", options.workload == "none" ? nlohmann::json() : nlohmann::json(options.workload)}};
  json["step_ms"]["worst_rank"] = step.worst_rank;
  json["step_ms"]["worst_rank_p50"] = step.worst_rank_p50;
  write_json_report(options.bench.json, json);
}

}  // namespace

Command bench_layer_command() {
  const auto options = std::make_shared<LayerBenchOptions>();
  return {
      .name = "layer",
      .summary = "measures forward, backward and update of a mixture-of-experts layer, and its products alone",
      .options = bench_fields(
          {{"tokens", &options->tokens, at_least(1), "tokens of each rank"},
           {"hidden", &options->hidden, at_least(1), "width of a row"},
           {"ffn", &options->ffn, at_least(1), "inner width of an expert"},
           {"activation", &options->activation, one_of({"silu", "gelu", "relu"}), "activation of the experts"},
           {"experts", &options->experts, at_least(1), "routed experts, over all ranks"},
           {"top-k", &options->top_k, at_least(1), "experts of a token"},
           {"precision", &options->precision, one_of({"fp32", "bf16"}), "type of the products"},
           {"strategy", &options->strategy, one_of(strategy_names({"auto"})), "strategy of the exchange"},
           {"balance", &options->balance, one_of({"none", "host"}),
            "host: ranks of a host compute rows of each other's busy experts (exchange.balance)"},
           {"workload", &options->workload, one_of({"none", "W0", "W1", "W2", "W3", "W4", "W5", "W6", "W7", "all"}),
            "routing as in bench exchange: W0 balanced, W1 hot experts, W2 hot rank, W3 hot expert on each rank, W4 "
            "uneven tokens, W5 idle rank, W6 moving hot rank, W7 bursts; none: the router's; all: each of them in "
            "turn, "
            "beside W0"}},
          options->bench),
      .run = [options](const Job& job) {
        check_top_k(options->top_k, options->experts);
        on_bench_ranks(job, options->bench, [&](const Communicator& world) {
          options->workload == "all" ? bench_layer_workloads(world, *options) : bench_layer(world, *options);
        });
      }};
}

}  // namespace cadre
