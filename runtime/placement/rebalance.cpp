// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/rebalance.hpp"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "runtime/placement/policies.hpp"

namespace cadre {
namespace {

// A move must lower the busiest rank by more than rounding.
constexpr double kLeastImprovement = 1e-6;

double peak_load(const ExpertSlots& slots, std::span<const double> weight) {
  return std::ranges::max(rank_loads(slots, weight));
}

// Ranks by how many experts they hold, most first; of equal ones the first.
std::vector<int> by_size(const ExpertMap& map) {
  std::vector<int> ranks(static_cast<size_t>(map.num_ranks()));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::ranges::stable_sort(ranks, std::ranges::greater{}, [&](int rank) { return map.experts_of(rank).size(); });
  return ranks;
}

// Slots of these ranks of a map, in this order.
ExpertSlots slots_in_order(const ExpertMap& map, const std::vector<int>& ranks) {
  ExpertSlots slots;
  slots.first_slot = {0};
  for (const int rank : ranks) {
    std::ranges::copy(map.experts_of(rank), std::back_inserter(slots.expert));
    slots.first_slot.push_back(slots.num_slots());
  }
  number_copies(slots, map.num_experts());
  return slots;
}

// Gives each slot that is empty, or holds a second copy, an expert that its rank does not hold.
void fill_with_distinct(ExpertSlots& slots, const ExpertSlots& before, std::span<const double> weight) {
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    const std::span<const int> was = before.of_rank(rank);
    for (int slot = slots.first_slot[rank]; slot < slots.first_slot[rank + 1]; ++slot) {
      const int here = slots.expert[slot];
      if (here != ExpertSlots::kEmpty && std::ranges::count(slots.of_rank(rank), here) == 1) continue;
      int best = ExpertSlots::kEmpty;
      std::pair<double, bool> best_cost;  // load of the busiest rank, whether it would have to move
      for (int expert = 0; expert < static_cast<int>(weight.size()); ++expert) {
        slots.expert[slot] = here;
        if (std::ranges::count(slots.of_rank(rank), expert) > 0) continue;
        slots.expert[slot] = expert;
        const std::pair cost = {peak_load(slots, weight), std::ranges::count(was, expert) == 0};
        if (best != ExpertSlots::kEmpty && cost >= best_cost) continue;
        best = expert;
        best_cost = cost;
      }
      slots.expert[slot] = best;
    }
  }
  number_copies(slots, static_cast<int>(weight.size()));
}

}  // namespace

void LoadMean::add(const std::vector<std::vector<int64_t>>& counts) {
  ++steps_;
  const double part = 1.0 / static_cast<double>(std::min(steps_, kLoadWindow));
  mean_.resize(counts.size());
  for (size_t layer = 0; layer < counts.size(); ++layer) {
    std::vector<double>& mean = mean_[layer];
    mean.resize(counts[layer].size());
    for (size_t e = 0; e < mean.size(); ++e) mean[e] += (static_cast<double>(counts[layer][e]) - mean[e]) * part;
  }
}

ExpertSlots slots_of(const ExpertMap& map) {
  std::vector<int> ranks(static_cast<size_t>(map.num_ranks()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return slots_in_order(map, ranks);
}

bool has_even_slots(const ExpertMap& map) {
  const ExpertSlots slots = slots_in_order(map, by_size(map));
  return slots.first_slot == even_parts(slots.num_slots(), map.num_ranks()) &&
         std::ranges::all_of(count_copies(slots, map.num_experts()),
                             [&](int copies) { return copies <= map.num_ranks(); });
}

ExpertMap place_anew(const ExpertMap& before, std::span<const double> weight, int groups, int nodes) {
  const std::vector<int> order = by_size(before);
  const ExpertSlots old = slots_in_order(before, order);
  // Ranks in another order are no longer node by node.
  const bool in_order = std::ranges::is_sorted(order);
  const PlacementSizes sizes = {old.num_slots(), groups, in_order ? nodes : 1, before.num_ranks()};
  ExpertSlots slots = cadre_placement(weight, sizes, &old);
  fill_with_distinct(slots, old, weight);
  if (peak_load(slots, weight) >= peak_load(old, weight) * (1.0 - kLeastImprovement)) return before;
  std::vector<std::vector<int>> experts_of(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const std::span<const int> experts = slots.of_rank(static_cast<int>(i));
    experts_of[static_cast<size_t>(order[i])].assign(experts.begin(), experts.end());
  }
  return ExpertMap::of(before.num_experts(), experts_of);
}

std::vector<int64_t> plan_some_layers(const std::vector<ExpertMap>& before,
                                      const std::vector<std::vector<double>>& weight, int groups, int nodes,
                                      int planner, int planners) {
  std::vector<int64_t> experts;
  for (size_t layer = 0; layer < before.size(); ++layer) {
    if (static_cast<int>(layer) % planners != planner) {
      experts.insert(experts.end(), static_cast<size_t>(before[layer].num_replicas()), 0);
      continue;
    }
    const ExpertMap after = place_anew(before[layer], weight[layer], groups, nodes);
    for (int rank = 0; rank < after.num_ranks(); ++rank)
      std::ranges::copy(after.experts_of(rank), std::back_inserter(experts));
  }
  return experts;
}

std::vector<ExpertMap> maps_of_plan(const std::vector<ExpertMap>& before, std::span<const int64_t> experts) {
  std::vector<ExpertMap> maps;
  auto next = experts.begin();
  for (const ExpertMap& map : before) {
    std::vector<std::vector<int>> experts_of;
    for (int rank = 0; rank < map.num_ranks(); ++rank) {
      const auto end = next + static_cast<std::ptrdiff_t>(map.experts_of(rank).size());
      experts_of.emplace_back(std::exchange(next, end), end);
    }
    maps.push_back(ExpertMap::of(map.num_experts(), experts_of));
  }
  return maps;
}

double busiest_over_mean(const std::vector<ExpertMap>& maps, const std::vector<std::vector<double>>& weight) {
  double busiest = 0.0;
  double mean = 0.0;
  for (size_t layer = 0; layer < maps.size(); ++layer) {
    const std::vector<double> loads = rank_loads(slots_of(maps[layer]), weight[layer]);
    busiest += std::ranges::max(loads);
    mean += std::accumulate(loads.begin(), loads.end(), 0.0) / static_cast<double>(loads.size());
  }
  return mean > 0.0 ? busiest / mean : 1.0;
}

std::vector<int> arrivals(const ExpertMap& before, const ExpertMap& after) {
  std::vector<int> counts;
  for (int rank = 0; rank < after.num_ranks(); ++rank) {
    counts.push_back(static_cast<int>(std::ranges::count_if(after.experts_of(rank), [&](int expert) {
      return !std::ranges::binary_search(before.experts_of(rank), expert);
    })));
  }
  return counts;
}

std::vector<ExpertMap> within_arrivals(const std::vector<ExpertMap>& before, const std::vector<ExpertMap>& after,
                                       const std::vector<std::vector<double>>& weight, int64_t most) {
  std::vector<double> gain;
  for (size_t layer = 0; layer < before.size(); ++layer) {
    gain.push_back(peak_load(slots_of(before[layer]), weight[layer]) -
                   peak_load(slots_of(after[layer]), weight[layer]));
  }
  std::vector<size_t> order(before.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](size_t layer) { return gain[layer]; });
  std::vector<ExpertMap> maps = before;
  std::vector<int64_t> arrived;
  for (const size_t layer : order) {
    const std::vector<int> more = arrivals(before[layer], after[layer]);
    std::vector<int64_t> with = arrived.empty() ? std::vector<int64_t>(more.size()) : arrived;
    for (size_t rank = 0; rank < more.size(); ++rank) with[rank] += more[rank];
    if (!arrived.empty() && std::ranges::max(with) > most) continue;
    arrived = std::move(with);
    maps[layer] = after[layer];
  }
  return maps;
}

double MoveEstimate::plain_gain_ms() const {
  const double balanced_ms = step_ms / (expert_share * before + 1.0 - expert_share);
  return balanced_ms * expert_share * (before - after);
}

double MoveHistory::Sums::factor() const {
  constexpr double kMost = 8.0;
  const double expected_ms = prior_ms_ + expected_ms_;
  return expected_ms > 0.0 ? std::clamp((prior_ms_ + measured_ms_) / expected_ms, 1.0 / kMost, kMost) : 1.0;
}

void MoveHistory::Sums::add(double expected_ms, double measured_ms, double step_ms) {
  constexpr double kKept = 0.75;
  constexpr double kPrior = 0.05;
  expected_ms_ = kKept * expected_ms_ + expected_ms;
  measured_ms_ = kKept * measured_ms_ + measured_ms;
  prior_ms_ = kPrior * step_ms;
}

bool RebalanceClock::tick() {
  ++steps_;
  return ++waited_ >= wait_;
}

void RebalanceClock::has_looked() {
  waited_ = 0;
  if (every_ <= 0) wait_ = std::min(2 * wait_, kLongestWait);
}

void RebalanceClock::has_moved() {
  waited_ = 0;
  steps_ = 0;
  if (every_ <= 0) wait_ = kFirstLook;
}

}  // namespace cadre
