// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/expert_slots.hpp"

#include <algorithm>
#include <numeric>
#include <set>

namespace cadre {

std::vector<int> even_parts(int slots, int ranks) {
  std::vector<int> first = {0};
  for (int rank = 0; rank < ranks; ++rank)
    first.push_back(first.back() + slots / ranks + (rank < slots % ranks ? 1 : 0));
  return first;
}

ExpertSlots contiguous_slots(int num_experts, int num_ranks) {
  ExpertSlots slots;
  slots.expert.resize(static_cast<size_t>(num_experts));
  std::iota(slots.expert.begin(), slots.expert.end(), 0);
  slots.copy.assign(slots.expert.size(), 0);
  slots.first_slot = even_parts(num_experts, num_ranks);
  return slots;
}

void number_copies(ExpertSlots& slots, int num_experts) {
  std::vector<int> next(static_cast<size_t>(num_experts), 0);
  slots.copy.clear();
  for (const int expert : slots.expert) {
    slots.copy.push_back(expert == ExpertSlots::kEmpty ? ExpertSlots::kEmpty : next[expert]++);
  }
}

ExpertSlots settle(const std::vector<int>& first_slot, std::vector<std::vector<int>> experts_of, int num_experts,
                   const ExpertSlots* before) {
  ExpertSlots slots;
  slots.first_slot = first_slot;
  slots.expert.assign(static_cast<size_t>(first_slot.back()), ExpertSlots::kEmpty);
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    std::vector<int>& experts = experts_of[rank];
    std::ranges::sort(experts);
    const int room = first_slot[rank + 1] - first_slot[rank];
    const std::span<int> own = std::span(slots.expert).subspan(first_slot[rank], room);
    if (before != nullptr) {
      const std::span<const int> old = before->of_rank(rank);
      for (size_t i = 0; i < std::min(own.size(), old.size()); ++i) {
        const auto kept = std::ranges::find(experts, old[i]);
        if (kept == experts.end()) continue;
        own[i] = old[i];
        experts.erase(kept);
      }
    }
    for (const int expert : experts) *std::ranges::find(own, ExpertSlots::kEmpty) = expert;
  }
  number_copies(slots, num_experts);
  return slots;
}

std::vector<int> count_copies(const ExpertSlots& slots, int num_experts) {
  std::vector<int> counts(static_cast<size_t>(num_experts), 0);
  for (const int expert : slots.expert) {
    if (expert != ExpertSlots::kEmpty) ++counts[expert];
  }
  return counts;
}

std::vector<double> rank_loads(const ExpertSlots& slots, std::span<const double> weight) {
  const std::vector<int> copies = count_copies(slots, static_cast<int>(weight.size()));
  std::vector<double> loads;
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    double load = 0.0;
    for (const int expert : slots.of_rank(rank)) {
      if (expert != ExpertSlots::kEmpty) load += weight[expert] / copies[expert];
    }
    loads.push_back(load);
  }
  return loads;
}

double max_over_mean(std::span<const double> loads) {
  const double total = std::accumulate(loads.begin(), loads.end(), 0.0);
  return total > 0.0 ? std::ranges::max(loads) * static_cast<double>(loads.size()) / total : 1.0;
}

int copies_moved(const ExpertSlots& before, const ExpertSlots& after) {
  int moved = 0;
  for (int rank = 0; rank < after.num_ranks(); ++rank) {
    const std::span<const int> old = before.of_rank(rank);
    const std::span<const int> now = after.of_rank(rank);
    for (const int expert : std::set<int>(now.begin(), now.end())) {
      if (expert != ExpertSlots::kEmpty && std::ranges::find(old, expert) == old.end()) ++moved;
    }
  }
  return moved;
}

ExpertMap to_expert_map(const ExpertSlots& slots, int num_experts) {
  std::vector<std::vector<int>> experts_of(static_cast<size_t>(slots.num_ranks()));
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    for (const int expert : slots.of_rank(rank)) {
      if (expert != ExpertSlots::kEmpty) experts_of[rank].push_back(expert);
    }
  }
  return ExpertMap::of(num_experts, experts_of);
}

}  // namespace cadre
