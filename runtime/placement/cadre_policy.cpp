// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/cadre_policy.hpp"

#include <algorithm>
#include <set>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/placement/eplb.hpp"
#include "runtime/placement/layer_planner.hpp"

namespace cadre {
namespace {

double peak_of(const ExpertSlots& slots, std::span<const double> weight) {
  return std::ranges::max(rank_loads(slots, weight));
}

// Two copies on one rank are one that takes two shares, and uneven shares can be better balanced than any even ones. Of such
// doubles, those go that another expert of the node, or nothing, can stand for without a peak above `most`.
ExpertSlots with_fewer_doubles(ExpertSlots slots, std::span<const double> weight, int ranks_of_node, double most) {
  const auto num_experts = static_cast<int>(weight.size());
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    const int node_begin = slots.first_slot[rank / ranks_of_node * ranks_of_node];
    const int node_end = slots.first_slot[(rank / ranks_of_node + 1) * ranks_of_node];
    const std::set<int> of_node(slots.expert.begin() + node_begin, slots.expert.begin() + node_end);
    for (int slot = slots.first_slot[rank]; slot < slots.first_slot[rank + 1]; ++slot) {
      const int doubled = slots.expert[slot];
      if (doubled == ExpertSlots::kEmpty || std::ranges::count(slots.of_rank(rank), doubled) == 1) continue;
      int best = doubled;
      double best_peak = most * (1.0 + kSamePeak);
      const auto consider = [&](int expert) {
        slots.expert[slot] = expert;
        const double peak = peak_of(slots, weight);
        if (peak > best_peak) return;
        best = expert;
        best_peak = peak;
      };
      consider(ExpertSlots::kEmpty);
      for (const int expert : of_node) {
        if (expert != ExpertSlots::kEmpty && std::ranges::count(slots.of_rank(rank), expert) == 0) consider(expert);
      }
      slots.expert[slot] = best;
    }
  }
  number_copies(slots, num_experts);
  return slots;
}

}  // namespace

ExpertSlots cadre_placement(std::span<const double> weight, const PlacementSizes& sizes, const ExpertSlots* before) {
  const auto num_experts = static_cast<int>(weight.size());
  CADRE_CHECK(sizes.slots >= num_experts,
              fmt::format("{} replicas for {} experts, allowed: at least one each", sizes.slots, num_experts),
              "raise --replicas");
  CADRE_CHECK(before == nullptr || before->num_ranks() == sizes.ranks,
              fmt::format("the placement before is for {} ranks, this one for {}",
                          before == nullptr ? 0 : before->num_ranks(), sizes.ranks),
              "plan without it");
  std::vector<ExpertSlots> others = {contiguous_slots(num_experts, sizes.ranks)};
  const double contiguous_peak = peak_of(others.front(), weight);
  double most = contiguous_peak;
  const bool has_eplb = eplb_can_run(num_experts, sizes);
  if (has_eplb) {
    others.push_back(eplb(weight, sizes));
    most = std::min(most, peak_of(others.back(), weight));
  }
  const bool could_group = has_eplb && sizes.nodes > 1 && sizes.groups % sizes.nodes == 0;

  const LayerPlanner grouped(weight, sizes, could_group);
  const LayerPlanner ungrouped(weight, sizes, false);
  ExpertSlots plan = grouped.fresh(others, &others.back(), most);
  // With groups on nodes the experts in a row may be out of reach.
  const bool gives_groups_up = could_group && peak_of(plan, weight) > contiguous_peak * (1.0 + kSamePeak);
  const LayerPlanner& planner = gives_groups_up ? ungrouped : grouped;
  if (gives_groups_up) plan = ungrouped.fresh(others, nullptr, most);
  if (has_eplb && peak_of(plan, weight) > most * (1.0 + kSamePeak)) {
    plan = with_fewer_doubles(others.back(), weight, could_group ? sizes.ranks / sizes.nodes : sizes.ranks, most);
  }
  if (before == nullptr) return plan;

  const double goal = std::min(most, peak_of(plan, weight) * (1.0 + kSlack)) * (1.0 + kSamePeak);
  ExpertSlots onward = planner.onward(*before, plan, goal);
  ExpertSlots renumbered = planner.renumbered(plan, *before);
  const bool little =
      peak_of(onward, weight) <= goal && copies_moved(*before, onward) <= copies_moved(*before, renumbered);
  return little ? onward : renumbered;
}

}  // namespace cadre
