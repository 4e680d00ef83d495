// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/move_setting.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "comm/exchange/choose.hpp"
#include "layers/model/router_options.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"

namespace cadre {
namespace {

// Hosts whose ranks follow each other, equally many on each; else 1.
int even_nodes(const Topology& topology) {
  const bool even =
      topology.num_ranks() % topology.num_hosts() == 0 &&
      topology.host_of_rank ==
          Topology::uniform(topology.num_hosts(), topology.num_ranks() / topology.num_hosts()).host_of_rank;
  return even ? topology.num_hosts() : 1;
}

// Seconds that a byte takes from one place of this rank's memory to another.
double copy_beta_s() {
  constexpr size_t kBytes = size_t{8} << 20;
  Buffer from(kBytes);
  Buffer to(kBytes);
  std::vector<double> seconds;
  for (int round = 0; round < 4; ++round) {  // the first touches the memory
    std::memset(from.data(), round, kBytes);
    const int64_t begin_ns = trace_clock_ns();
    std::memcpy(to.data(), from.data(), kBytes);
    if (round > 0) seconds.push_back(static_cast<double>(trace_clock_ns() - begin_ns) * 1e-9);
  }
  return std::ranges::min(seconds) / static_cast<double>(kBytes);
}

int64_t value_bytes_here(Worker& worker) {
  int64_t bytes = 0;
  for (const Parameter* parameter : worker.store().parameters()) {
    if (parameter->placement == Placement::expert) bytes += static_cast<int64_t>(parameter->value.bytes());
  }
  return bytes;
}

// At least 1.
int64_t num_experts_here(Worker& worker) {
  size_t experts = 0;
  for (const int layer : moe_layers_of(worker.model().config())) {
    if (worker.model().stage_with(layer) == nullptr) continue;
    experts += worker.expert_maps().of(layer).experts_of(worker.expert_group().rank()).size();
  }
  return static_cast<int64_t>(std::max<size_t>(1, experts));
}

}  // namespace

std::string why_experts_stay(const Worker& worker) {
  if (worker.grid().expert == 1) return "each rank holds all experts";
  if (std::ranges::all_of(mixture_maps(worker, moe_layers_of(worker.model().config())), has_even_slots)) return "";
  return "ranks hold unequal numbers of experts; choose redundant experts or a placement so that they differ by one at "
         "most";
}

MoveSetting measure_moves(Worker& worker, int64_t state_bytes) {
  const Communicator& group = worker.expert_group();
  const Topology topology = discover_topology(group);
  const GroupLimit& limit = router_options(worker.model().config()).eligibility.groups;
  const CostModel costs = measure_costs(group, topology);
  const int64_t experts = num_experts_here(worker);
  const int64_t value_bytes = value_bytes_here(worker);
  const std::array<double, 2> seconds = {std::max(costs.host.beta_s, costs.network.beta_s), copy_beta_s()};
  const std::array<int64_t, 2> bytes = {value_bytes / experts, (value_bytes + state_bytes) / experts};
  const auto most_seconds = worker.await(worker.world().all_reduce(seconds, ReduceOp::max));
  const auto most_bytes = worker.await(worker.world().all_reduce(bytes, ReduceOp::max));
  return {.groups = limit.limits() ? limit.groups : 1,
          .nodes = even_nodes(topology),
          .seconds_per_byte = most_seconds[0],
          .copy_seconds_per_byte = most_seconds[1],
          .value_bytes = most_bytes[0],
          .expert_bytes = most_bytes[1]};
}

std::vector<ExpertMap> mixture_maps(const Worker& worker, const std::vector<int>& layers) {
  std::vector<ExpertMap> maps;
  for (const int layer : layers) maps.push_back(worker.expert_maps().of(layer));
  return maps;
}

}  // namespace cadre
