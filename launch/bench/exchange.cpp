// SPDX-License-Identifier: Apache-2.0
// cadre bench exchange: what it takes to bring rows to experts and results back, by strategy and workload, beside what
// is written by hand with MPI_Alltoallv and beside a memcpy of the same bytes, in turn in the same run.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "launch/bench/bench.hpp"
#include "launch/bench/exchange_run.hpp"
#include "runtime/parallel/devices.hpp"

namespace cadre {
namespace {

struct Sums {
  int64_t logical = 0, crossing = 0, between_hosts = 0, alltoallv = 0, wrong = 0;
};

// Of all ranks.
void add_over_ranks(const Communicator& world, Sums& sums) {
  const std::array mine = {sums.logical, sums.crossing, sums.between_hosts, sums.alltoallv, sums.wrong};
  const auto values = wait(world.all_reduce(mine, ReduceOp::sum));
  sums = {values[0], values[1], values[2], values[3], values[4]};
}

// The larger of what the busiest rank sends and receives (the alltoallv convention of nccl-tests), both ways.
double busiest_bytes(const Communicator& world, const Dispatch& dispatch, size_t row_bytes) {
  const int64_t mine = std::max(dispatch.plan().num_rows(), dispatch.num_rows_received());
  const int64_t most = wait(world.all_reduce(mine, ReduceOp::max));
  return 2.0 * static_cast<double>(most) * static_cast<double>(row_bytes);
}

nlohmann::json measure(const Communicator& world, const Topology& topology, const ExchangeBenchOptions& options,
                       const std::string& strategy, Workload workload) {
  ExchangeRun run(world, topology, options, strategy);
  std::vector<double> exchange, yardstick, copy;
  Sums sums;
  double busiest = 0.0;
  for (int64_t i = -options.warmup; i < options.iterations; ++i) {
    run.prepare(workload, std::max<int64_t>(i, 0));
    const Traffic before = run.traffic();
    const double exchange_us = run.exchange_us();
    const Traffic traffic = run.traffic() - before;
    sums.wrong += run.wrong_results() + (options.wire == "fp32" ? run.wrong_placed() : 0);
    const double yardstick_us = run.alltoallv_us();
    sums.wrong += run.wrong_results();
    const double copy_us = run.memcpy_us();
    if (i < 0) continue;
    exchange.push_back(exchange_us);
    yardstick.push_back(yardstick_us);
    copy.push_back(copy_us);
    const size_t row_bytes = static_cast<size_t>(options.hidden) * sizeof(float);
    sums.logical += 2 * run.dispatched().plan().num_rows() * static_cast<int64_t>(row_bytes);
    sums.crossing += traffic.between_ranks;
    sums.between_hosts += traffic.between_hosts;
    sums.alltoallv += run.alltoallv_bytes();
    busiest += busiest_bytes(world, run.dispatched(), row_bytes);
  }
  add_over_ranks(world, sums);
  const TimesOverRanks times = gather_times(world, exchange);
  const double yardstick_us = gather_times(world, yardstick).slowest.p50;
  const double copy_us = gather_times(world, copy).slowest.p50;
  const auto per_iteration = [&](int64_t sum) { return sum / options.iterations; };
  const double algbw = busiest / static_cast<double>(options.iterations) / times.slowest.p50 * 1e-3;
  const double ranks = world.size();
  return {{"strategy", strategy},
          {"wire", options.wire},
          {"workload", name_of(workload)},
          {"ranks", world.size()},
          {"hosts", topology.num_hosts()},
          {"tokens", options.tokens},
          {"hidden", options.hidden},
          {"experts", options.experts},
          {"top_k", options.top_k},
          {"p50_us", times.slowest.p50},
          {"p95_us", times.slowest.p95},
          {"worst_rank", times.worst_rank},
          {"worst_rank_us", times.worst_rank_p50},
          {"alltoallv_p50_us", yardstick_us},
          {"memcpy_p50_us", copy_us},
          {"logical_bytes", per_iteration(sums.logical)},
          {"crossing_bytes", per_iteration(sums.crossing)},
          {"between_hosts_bytes", per_iteration(sums.between_hosts)},
          {"alltoallv_bytes", per_iteration(sums.alltoallv)},
          {"algbw_gb_s", algbw},
          {"busbw_gb_s", algbw * (ranks - 1.0) / ranks},
          {"wrong", sums.wrong},
          {"speedup_vs_alltoallv", yardstick_us / times.slowest.p50},
          {"ratio_to_memcpy", times.slowest.p50 / copy_us}};
}

void print_row(const nlohmann::json& row) {
  fmt::print(
      "{:<20} {:<13} {:<5} {:>9.0f} {:>9.0f} {:>9.0f} {:>4} {:>9.1f} {:>9.1f} {:>6.2f} {:>6.2f} {:>6} {:>7.2f} "
      "{:>7.2f}\n",
      row["workload"].get<std::string>(), row["strategy"].get<std::string>(), row["wire"].get<std::string>(),
      row["p50_us"].get<double>(), row["p95_us"].get<double>(), row["worst_rank_us"].get<double>(),
      row["worst_rank"].get<int>(), row["logical_bytes"].get<double>() / 1048576.0,
      row["crossing_bytes"].get<double>() / 1048576.0, row["algbw_gb_s"].get<double>(), row["busbw_gb_s"].get<double>(),
      row["wrong"].get<int64_t>(), row["speedup_vs_alltoallv"].get<double>(), row["ratio_to_memcpy"].get<double>());
}

std::vector<Workload> workloads_named(const std::string& name) {
  std::vector<Workload> workloads;
  for (int i = 0; i < kNumWorkloads; ++i) {
    const auto workload = static_cast<Workload>(i);
    if (name == "all" || name_of(workload).substr(0, 2) == name) workloads.push_back(workload);
  }
  return workloads;
}

void bench_exchange(const Communicator& world, const ExchangeBenchOptions& options) {
  CADRE_CHECK(options.hosts == 0 || world.size() % options.hosts == 0,
              fmt::format("--hosts {} with {} ranks", options.hosts, world.size()), "the hosts must divide the ranks");
  const Topology topology = options.hosts == 0 ? discover_topology(world)
                                               : Topology::uniform(static_cast<int>(options.hosts),
                                                                   world.size() / static_cast<int>(options.hosts));
  CADRE_CHECK(options.wire != "fp8" || options.hidden > kFp8TileChannels,
              fmt::format("--wire fp8 with --hidden {}, allowed: more than {}", options.hidden, kFp8TileChannels),
              "the first tile holds the id of the row");
  nlohmann::json report = nlohmann::json::array();
  if (world.rank() == 0) {
    fmt::print(
        "dispatch + combine, {} ranks on {} hosts, {} tokens a rank, hidden {}, {} experts, top-{}; us of the "
        "slowest rank, MiB of all ranks, GB/s\n",
        world.size(), topology.num_hosts(), options.tokens, options.hidden, options.experts, options.top_k);
    fmt::print("{:<20} {:<13} {:<5} {:>9} {:>9} {:>9} {:>4} {:>9} {:>9} {:>6} {:>6} {:>6} {:>7} {:>7}\n", "workload",
               "strategy", "wire", "p50", "p95", "worst", "rank", "logical", "crossing", "algbw", "busbw", "wrong",
               "vs a2av", "/memcpy");
  }
  for (const Workload workload : workloads_named(options.workload)) {
    for (const std::string_view strategy : kStrategies) {
      if (options.strategy != "all" && options.strategy != strategy) continue;
      try {
        report.push_back(measure(world, topology, options, std::string(strategy), workload));
        if (world.rank() == 0) print_row(report.back());
      } catch (const Error& error) {
        // On all ranks alike.
        if (options.strategy != "all" || error.kind() != ErrorKind::environment) throw;
        if (world.rank() == 0) fmt::print("{:<20} {:<13} left out: {}\n", name_of(workload), strategy, error.what());
      }
    }
  }
  int64_t wrong = 0;
  for (const nlohmann::json& row : report) wrong += row["wrong"].get<int64_t>();
  if (world.rank() == 0 && !options.json.empty()) write_json_report(options.json, report);
  CADRE_CHECK(wrong == 0, fmt::format("{} rows were wrong", wrong));
}

}  // namespace

Command bench_exchange_command() {
  const auto options = std::make_shared<ExchangeBenchOptions>();
  return {
      .name = "exchange",
      .summary = "measures dispatch and combine, MPI_Alltoallv with the same rows, and a memcpy of the same bytes",
      .options = {{"strategy", &options->strategy, one_of(strategy_names({"all"})), "strategy, or all that can run"},
                  {"workload", &options->workload, one_of({"all", "W0", "W1", "W2", "W3", "W4", "W5", "W6", "W7"}),
                   "routing: balanced, hot expert set, hot rank, spread hot, ragged source, zero-expert rank, rotating "
                   "hotspot, burst"},
                  {"wire", &options->wire, one_of({"fp32", "bf16", "fp8"}),
                   "format of dispatched rows; results return as bf16 unless this is fp32"},
                  {"combine", &options->combine, one_of({"partial", "slot_order"}), "how results return"},
                  device_option(options->device),
                  {"tokens", &options->tokens, at_least(1), "tokens of each rank"},
                  {"hidden", &options->hidden, at_least(2), "width of a row"},
                  {"experts", &options->experts, at_least(1), "experts over all ranks"},
                  {"top-k", &options->top_k, at_least(1), "experts of a token"},
                  {"hosts", &options->hosts, at_least(0), "treat the ranks as this many hosts; 0: the real hosts"},
                  {"iterations", &options->iterations, at_least(1), "measured iterations"},
                  {"warmup", &options->warmup, at_least(0), "iterations before the measurement"},
                  ranks_option(options->ranks),
                  {"json", &options->json, any(), "also write the result to this file, as JSON: a list of rows"}},
      .run = [options](const Job& job) {
        check_top_k(options->top_k, options->experts);
        job.on_ranks(options->ranks, [&](Communicator world) {
          bench_exchange(over_devices(std::move(world), {.device = options->device}, {}), *options);
        });
      }};
}

}  // namespace cadre
