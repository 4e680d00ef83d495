// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/pass_rebalancer.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "comm/base/median.hpp"
#include "runtime/parallel/expert_move.hpp"

namespace cadre {
namespace {

std::vector<std::vector<int64_t>> no_slots(const ModelConfig& config, size_t num_layers) {
  return {num_layers, std::vector<int64_t>(static_cast<size_t>(std::max<int64_t>(1, config.n_routed_experts)), 0)};
}

}  // namespace

PassRebalancer::PassRebalancer(Worker& worker, int64_t every)
    : worker_(worker),
      note_(why_experts_stay(worker)),
      clock_(every),
      expert_share_(std::min(1.0, routed_flops_per_token(worker.model().config()) /
                                      flops_per_token(worker.model().config(), /*sequence_length=*/1))),
      slots_(no_slots(worker.model().config(), layers_.size())),
      no_optimizer_(worker.store(), {}, [](const Parameter&) { return false; }) {
  if (note_.empty()) setting_ = measure_moves(worker, /*state_bytes=*/0);
}

void PassRebalancer::after_pass(double pass_ms, const std::map<int, std::vector<int64_t>>& slots, int64_t passes_left) {
  if (!note_.empty()) return;
  pass_ms_.push_back(pass_ms);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const auto found = slots.find(layers_[layer]);
    if (found == slots.end()) continue;
    for (size_t e = 0; e < slots_[layer].size(); ++e) slots_[layer][e] += found->second[e];
  }
  if (!clock_.tick()) return;
  worker_.lane().enter("rebalance");
  const Proposal proposal = weigh(propose(), passes_left);
  // Clocks of ranks differ.
  const bool pays =
      std::ranges::any_of(proposal.arrived, [](int count) { return count > 0; }) && proposal.estimate.pays();
  const std::vector<int64_t> decision = {pays ? 1 : 0};
  const bool moves = worker_.await(worker_.world().broadcast(decision, /*root=*/0)).front() == 1;
  if (moves) {
    move(proposal);
  } else {
    clock_.has_looked();
    if (proposal.estimate.after < proposal.estimate.before) ++moves_.refused;
  }
  slots_ = no_slots(worker_.model().config(), layers_.size());
  pass_ms_.clear();
}

// Collective. The same on all ranks.
std::vector<ExpertMap> PassRebalancer::propose() {
  const Communicator& world = worker_.world();
  std::vector<int64_t> all;
  for (const std::vector<int64_t>& layer : slots_) all.insert(all.end(), layer.begin(), layer.end());
  all = worker_.await(world.all_reduce(std::move(all), ReduceOp::sum));
  std::vector<std::vector<int64_t>> counts;
  for (auto next = all.begin(); next != all.end();) {
    const auto end = next + static_cast<std::ptrdiff_t>(slots_.front().size());
    counts.emplace_back(std::exchange(next, end), end);
  }
  loads_.add(counts);
  const std::vector<ExpertMap> before = mixture_maps(worker_, layers_);
  std::vector<int64_t> planned =
      plan_some_layers(before, loads_.of_layers(), setting_.groups, setting_.nodes, world.rank(), world.size());
  return maps_of_plan(before, worker_.await(world.all_reduce(std::move(planned), ReduceOp::sum)));
}

PassRebalancer::Proposal PassRebalancer::weigh(std::vector<ExpertMap> maps, int64_t passes_left) const {
  const std::vector<ExpertMap> before = mixture_maps(worker_, layers_);
  const int64_t most = static_cast<int64_t>(kMostArrivingBytes) / std::max<int64_t>(1, setting_.expert_bytes);
  Proposal proposal = {within_arrivals(before, maps, loads_.of_layers(), most),
                       std::vector<int>(static_cast<size_t>(worker_.grid().expert), 0),
                       {}};
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const std::vector<int> arrived = arrivals(before[layer], proposal.maps[layer]);
    for (size_t rank = 0; rank < arrived.size(); ++rank) proposal.arrived[rank] += arrived[rank];
  }
  const double bytes = std::ranges::max(proposal.arrived) * static_cast<double>(setting_.expert_bytes);
  // All wait while experts travel; as many leave a rank as arrive.
  const double beta_s = 2.0 * setting_.seconds_per_byte + setting_.copy_seconds_per_byte;
  proposal.estimate = {.step_ms = median_of(pass_ms_),
                       .expert_share = expert_share_,
                       .before = busiest_over_mean(before, loads_.of_layers()),
                       .after = busiest_over_mean(proposal.maps, loads_.of_layers()),
                       .copy_ms = bytes * beta_s * 1e3,
                       .cost_factor = history_.cost_factor(),
                       .horizon = std::min(clock_.horizon(), passes_left)};
  return proposal;
}

// Collective.
void PassRebalancer::move(const Proposal& proposal) {
  if (!group_) group_.emplace(worker_.world().duplicate("expert move"));
  ExpertMaps maps = worker_.expert_maps();
  for (size_t layer = 0; layer < layers_.size(); ++layer) maps.set(layers_[layer], proposal.maps[layer]);
  const int64_t begin_ns = trace_clock_ns();
  moves_.bytes += ExpertMove(worker_, no_optimizer_, *group_, std::move(maps)).finish();
  const double took_ms = static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6;
  history_.add_cost(proposal.estimate.plain_cost_ms(), took_ms, proposal.estimate.step_ms);
  if (moves_.times == 0) moves_.before = proposal.estimate.before;
  moves_.after = proposal.estimate.after;
  moves_.ms += took_ms;
  moves_.experts += std::accumulate(proposal.arrived.begin(), proposal.arrived.end(), int64_t{0});
  ++moves_.times;
  clock_.has_moved();
}

std::string describe(const PassRebalancer::Moves& moves) {
  if (moves.times == 0) {
    return moves.refused == 0 ? "experts  did not move: no placement was better"
                              : fmt::format("experts  did not move: {} better placements did not pay", moves.refused);
  }
  return fmt::format(
      "experts  moved {} times, {} in all ({:.1f} MiB, {:.1f} ms); busiest rank / mean {:.2f} before, {:.2f} after",
      moves.times, moves.experts, static_cast<double>(moves.bytes) / (1 << 20), moves.ms, moves.before, moves.after);
}

}  // namespace cadre
