// SPDX-License-Identifier: Apache-2.0
// cadre plan dispatch: what one rank would send to whom, in rows once per expert, per rank and per host, and what making
// the plan costs.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <numeric>

#include "comm/base/trace.hpp"
#include "comm/exchange/hierarchical.hpp"
#include "launch/bench/bench.hpp"
#include "launch/bench/workloads.hpp"
#include "launch/command.hpp"

namespace cadre {
namespace {

struct PlanDispatchArguments {
  int64_t tokens = 4096;
  int64_t top_k = 8;
  int64_t experts = 256;
  int64_t ranks = 64;
  int64_t hosts = 8;
  int64_t hidden = 7168;
  int64_t rank = 0;
  int64_t repetitions = 21;
  std::string workload = "W0";
  std::string json;
};

// Milliseconds, median.
double plan_ms(std::span<const int32_t> ids, int top_k, const ExpertMap& map, int64_t repetitions) {
  std::vector<double> times;
  for (int64_t i = 0; i < repetitions; ++i) {
    const int64_t begin = trace_clock_ns();
    const DispatchPlan plan = make_dispatch_plan(ids, top_k, map);
    times.push_back(static_cast<double>(trace_clock_ns() - begin) * 1e-6);
  }
  return summarise(times).p50;
}

// Rows of rank `me` that leave it, and those that leave its host.
struct LeavingRows {
  int64_t between_ranks = 0;
  int64_t between_hosts = 0;
};

LeavingRows rows_one_per_rank(const DispatchPlan& plan, const HostMap& map, int me) {
  LeavingRows rows;
  for (int peer = 0; peer < plan.num_ranks(); ++peer) {
    if (peer != me) rows.between_ranks += plan.row_counts[peer];
    if (map.host_of(peer) != map.host()) rows.between_hosts += plan.row_counts[peer];
  }
  return rows;
}

int64_t rows_one_per_expert(const DispatchPlan& plan, int me) { return plan.num_slots() - plan.slot_counts[me]; }

Workload workload_named(const std::string& name) { return static_cast<Workload>(name.back() - '0'); }

void run_plan_dispatch(const PlanDispatchArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  CADRE_CHECK(options.top_k <= options.experts,
              fmt::format("--top-k {} with --experts {}", options.top_k, options.experts), "lower --top-k");
  CADRE_CHECK(options.ranks % options.hosts == 0,
              fmt::format("--hosts {} with --ranks {}", options.hosts, options.ranks),
              "the hosts must divide the ranks");
  CADRE_CHECK(options.rank < options.ranks, fmt::format("--rank {} with --ranks {}", options.rank, options.ranks),
              "ranks count from 0");
  const auto top_k = static_cast<int>(options.top_k);
  const auto me = static_cast<int>(options.rank);
  const auto num_hosts = static_cast<int>(options.hosts);
  const ExpertMap experts = ExpertMap::contiguous(static_cast<int>(options.experts), static_cast<int>(options.ranks));
  const std::vector<int32_t> ids =
      draw_routing(workload_named(options.workload), {options.tokens, top_k, me, 0}, experts);
  const DispatchPlan plan = make_dispatch_plan(ids, top_k, experts);
  const HostMap hosts(Topology::uniform(num_hosts, static_cast<int>(options.ranks) / num_hosts), me);
  const HostRows host_rows = make_host_rows(plan, hosts, NeedMask(static_cast<int>(options.ranks) / num_hosts).words());

  const LeavingRows per_rank = rows_one_per_rank(plan, hosts, me);
  const int64_t per_expert = rows_one_per_expert(plan, me);
  const auto per_host = static_cast<int64_t>(host_rows.token.size());
  const size_t row_bytes = static_cast<size_t>(options.hidden) * sizeof(float);
  const double whole_ms = plan_ms(ids, top_k, experts, options.repetitions);
  const double half_ms = plan_ms(std::span(ids).first(ids.size() / 2 / options.top_k * options.top_k), top_k, experts,
                                 options.repetitions);

  fmt::print("{}", plan.describe());
  fmt::print("rows that leave rank {}: {} one per expert, {} one per rank ({:.2f})\n", me, per_expert,
             per_rank.between_ranks,
             static_cast<double>(per_rank.between_ranks) / static_cast<double>(std::max<int64_t>(per_expert, 1)));
  fmt::print("rows that leave its host: {} one per rank, {} one per host ({:.1f} MiB, {:.2f} hosts a token)\n",
             per_rank.between_hosts, per_host,
             static_cast<double>(per_host) * static_cast<double>(row_bytes) / 1048576.0,
             static_cast<double>(per_host) / static_cast<double>(std::max<int64_t>(plan.num_tokens, 1)));
  fmt::print("made in {:.3f} ms, half of the tokens in {:.3f} ms\n", whole_ms, half_ms);
  if (options.json.empty()) return;
  write_json_report(options.json, {{"plan", "dispatch"},
                                   {"tokens", plan.num_tokens},
                                   {"rows", plan.num_rows()},
                                   {"slots", plan.num_slots()},
                                   {"row_counts", plan.row_counts},
                                   {"slot_counts", plan.slot_counts},
                                   {"rows_one_per_expert", per_expert},
                                   {"rows_one_per_rank", per_rank.between_ranks},
                                   {"host_rows_one_per_rank", per_rank.between_hosts},
                                   {"host_rows_one_per_host", per_host},
                                   {"made_in_ms", whole_ms},
                                   {"half_made_in_ms", half_ms}});
}

}  // namespace

Command plan_dispatch_command() {
  const auto options = std::make_shared<PlanDispatchArguments>();
  return {.name = "dispatch",
          .summary = "plans the dispatch of one rank: rows to each rank and host, and the time to plan",
          .options = {{"tokens", &options->tokens, at_least(1), "tokens of the rank"},
                      {"top-k", &options->top_k, at_least(1), "experts of a token"},
                      {"experts", &options->experts, at_least(1), "experts over all ranks"},
                      {"ranks", &options->ranks, between(1, 4096), "ranks that share the experts"},
                      {"hosts", &options->hosts, at_least(1), "hosts of the ranks"},
                      {"hidden", &options->hidden, at_least(1), "width of a row"},
                      {"rank", &options->rank, at_least(0), "rank to plan for"},
                      {"workload", &options->workload, one_of({"W0", "W1", "W2", "W3", "W4", "W5", "W6", "W7"}),
                       "routing; see cadre bench exchange"},
                      {"repetitions", &options->repetitions, at_least(1), "repetitions of the timing"},
                      {"json", &options->json, any(), "also write the result to this file, as JSON"}},
          .run = [options](const Job& job) { run_plan_dispatch(*options, job); }};
}

}  // namespace cadre
