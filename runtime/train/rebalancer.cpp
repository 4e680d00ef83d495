// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/rebalancer.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>

#include "comm/base/median.hpp"
#include "comm/exchange/choose.hpp"
#include "layers/model/router_options.hpp"
#include "runtime/parallel/expert_move.hpp"

namespace cadre {
namespace {

// Of steps whose time is kept for medians.
constexpr size_t kMostTimes = 64;

double milliseconds_from(int64_t begin_ns) { return static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6; }

bool is_routed_expert(const Parameter& parameter) { return parameter.placement == Placement::expert; }

// Hosts whose ranks follow each other, equally many on each; else 1.
int even_nodes(const Topology& topology) {
  const bool even =
      topology.num_ranks() % topology.num_hosts() == 0 &&
      topology.host_of_rank ==
          Topology::uniform(topology.num_hosts(), topology.num_ranks() / topology.num_hosts()).host_of_rank;
  return even ? topology.num_hosts() : 1;
}

}  // namespace

Rebalancer::Rebalancer(Worker& worker, const RunConfig& config, const Optimizer& optimizer)
    : worker_(worker),
      optimizer_(optimizer),
      expert_share_(std::min(
          1.0, routed_flops_per_token(config.model) / flops_per_token(config.model, config.data.sequence_length))),
      clock_(config.parallel.rebalance) {
  if (config.parallel.rebalance == 0) return;
  if (const std::string reason = why_not(); !reason.empty()) {
    note_ = "parallel.rebalance moves no expert: " + reason;
    return;
  }
  works_ = true;
  const GroupLimit& limit = router_options(config.model).eligibility.groups;
  groups_ = limit.limits() ? limit.groups : 1;
  measure();
}

// The same on all ranks.
std::string Rebalancer::why_not() const {
  const Grid& grid = worker_.grid();
  if (grid.expert == 1) return "each rank holds all experts";
  const std::vector<ExpertMap> maps = maps_now();
  const bool replicated = worker_.expert_maps().have_replicas();
  if (replicated && worker_.shards().sharded() && grid.data > grid.expert) {
    return "ranks that hold the same experts share out their state, and which experts have copies would change; "
           "parallel.shard_optimizer=false lets them move";
  }
  if (!std::ranges::all_of(maps, has_even_slots)) {
    return "ranks hold unequal numbers of experts; choose parallel.redundant_experts or parallel.placement so that "
           "they "
           "differ by one at most";
  }
  return "";
}

void Rebalancer::measure() {
  const Communicator& group = worker_.expert_group();
  const Topology topology = discover_topology(group);
  nodes_ = even_nodes(topology);
  const CostModel costs = measure_costs(group, topology);
  int64_t bytes = 0;
  for (const NamedTensor& tensor : state()) bytes += static_cast<int64_t>(tensor.memory.bytes());
  int64_t experts = 0;
  for (const int layer : layers_) {
    const bool here = worker_.model().stage_with(layer) != nullptr;
    if (here) experts += static_cast<int64_t>(worker_.expert_maps().of(layer).experts_of(group.rank()).size());
  }
  const double of_expert = experts == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(experts);
  const std::array<double, 2> mine = {std::max(costs.host.beta_s, costs.network.beta_s), of_expert};
  const auto most = worker_.await(worker_.world().all_reduce(mine, ReduceOp::max));
  seconds_per_byte_ = most[0];
  expert_bytes_ = static_cast<int64_t>(most[1]);
}

std::vector<NamedTensor> Rebalancer::state() const {
  std::vector<NamedTensor> tensors = name_values(worker_.store(), is_routed_expert);
  std::ranges::move(name_moments(optimizer_, is_routed_expert), std::back_inserter(tensors));
  return tensors;
}

std::vector<ExpertMap> Rebalancer::maps_now() const {
  std::vector<ExpertMap> maps;
  for (const int layer : layers_) maps.push_back(worker_.expert_maps().of(layer));
  return maps;
}

double Rebalancer::median_step_ms() const { return step_ms_.empty() ? 0.0 : median_of(step_ms_); }

// None where no map is better.
std::optional<Rebalancer::Proposal> Rebalancer::propose(int64_t steps_left) const {
  const std::vector<ExpertMap> before = maps_now();
  const std::vector<std::vector<double>>& loads = loads_.of_layers();
  Proposal proposal;
  std::vector<int> of_rank(static_cast<size_t>(worker_.grid().expert), 0);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    proposal.maps.push_back(place_anew(before[layer], loads[layer], groups_, nodes_));
    const std::vector<int> arrived = arrivals(before[layer], proposal.maps.back());
    for (size_t rank = 0; rank < of_rank.size(); ++rank) of_rank[rank] += arrived[rank];
  }
  const int64_t copies = std::accumulate(of_rank.begin(), of_rank.end(), int64_t{0});
  if (copies == 0) return std::nullopt;
  const int columns = worker_.grid().data / worker_.grid().expert;
  proposal.copies = copies * columns;
  // As many experts leave a rank as arrive.
  const double busiest_bytes = 2.0 * static_cast<double>(std::ranges::max(of_rank) * expert_bytes_);
  proposal.estimate = {.step_ms = median_step_ms(),
                       .expert_share = expert_share_,
                       .before = busiest_over_mean(before, loads),
                       .after = busiest_over_mean(proposal.maps, loads),
                       .cost_ms = busiest_bytes * seconds_per_byte_ * 1e3,
                       .horizon = std::min(clock_.horizon(), steps_left)};
  return proposal;
}

// 0: nothing is proposed, 1: refused, 2: to move; then the experts of each rank of each layer, which all ranks know the
// number of.
std::vector<int64_t> Rebalancer::as_message(const std::optional<Proposal>& proposal, bool moves) const {
  std::vector<int64_t> message = {!proposal ? 0 : moves ? 2 : 1};
  for (const ExpertMap& map : proposal ? proposal->maps : maps_now()) {
    for (int rank = 0; rank < map.num_ranks(); ++rank)
      std::ranges::copy(map.experts_of(rank), std::back_inserter(message));
  }
  return message;
}

ExpertMaps Rebalancer::maps_in(const std::vector<int64_t>& message) const {
  ExpertMaps maps = worker_.expert_maps();
  auto next = message.begin() + 1;
  for (const int layer : layers_) {
    const ExpertMap& before = worker_.expert_maps().of(layer);
    std::vector<std::vector<int>> experts_of;
    for (int rank = 0; rank < before.num_ranks(); ++rank) {
      std::vector<int>& experts = experts_of.emplace_back();
      for (size_t i = 0; i < before.experts_of(rank).size(); ++i) experts.push_back(static_cast<int>(*next++));
    }
    maps.set(layer, ExpertMap::of(before.num_experts(), experts_of));
  }
  return maps;
}

void Rebalancer::after_step(StepRecord& record, int64_t steps_left) {
  if (!works_) return;
  loads_.add(record.global.expert_counts);
  step_ms_.push_back(record.step_ms);
  if (step_ms_.size() > kMostTimes) step_ms_.erase(step_ms_.begin());
  if (!clock_.tick() || steps_left == 0) return;

  const int64_t begin_ns = trace_clock_ns();
  const TraceSpan span(worker_.job().tracer(), TraceKind::op, {.step = record.step, .phase = "rebalance"});
  worker_.lane().enter("rebalance");
  const bool decides = worker_.world().rank() == 0;
  std::optional<Proposal> proposal;
  if (decides) {
    if (last_move_) record.rebalance.got_ms = last_move_->step_ms - median_step_ms();
    proposal = propose(steps_left);
  }
  last_move_.reset();
  if (proposal) {
    record.rebalance.gain_ms = proposal->estimate.gain_ms();
    record.rebalance.cost_ms = proposal->estimate.cost_ms;
    record.rebalance.before = proposal->estimate.before;
    record.rebalance.after = proposal->estimate.after;
  }
  const bool wanted = proposal && proposal->estimate.pays();
  const std::vector<int64_t> message =
      worker_.await(worker_.world().broadcast(as_message(proposal, wanted), /*root=*/0));
  if (message.front() == 2) {
    if (proposal) record.rebalance.moved = proposal->copies;
    move(maps_in(message), record);
  } else {
    if (proposal) record.rebalance.refused = proposal->copies;
    clock_.has_looked();
  }
  record.rebalance.stall_ms = milliseconds_from(begin_ns);
}

void Rebalancer::move(const ExpertMaps& maps, StepRecord& record) {
  const int64_t begin_ns = trace_clock_ns();
  const MovedBytes moved = move_experts(
      worker_, maps, [this] { return state(); }, kMovePieceBytes);
  record.rebalance.bytes = moved.all;
  if (moved.busiest > 0) {
    seconds_per_byte_ = milliseconds_from(begin_ns) * 1e-3 / static_cast<double>(moved.busiest);
  }
  last_move_ = {median_step_ms()};
  step_ms_.clear();
  clock_.has_moved();
}

}  // namespace cadre
