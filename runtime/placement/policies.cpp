// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/policies.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/placement/layer_planner.hpp"

namespace cadre {
namespace {

// Groups that do not spread evenly over the nodes are left out of account, and nodes with them.
PlacementSizes used_sizes(const PlacementSizes& sizes) {
  if (sizes.groups % sizes.nodes == 0) return sizes;
  return {.slots = sizes.slots, .groups = 1, .nodes = 1, .ranks = sizes.ranks};
}

std::vector<float> sums_of_groups(std::span<const double> weight, int groups) {
  const size_t size = weight.size() / static_cast<size_t>(groups);
  std::vector<float> sums(static_cast<size_t>(groups), 0.0F);
  for (size_t expert = 0; expert < weight.size(); ++expert) sums[expert / size] += static_cast<float>(weight[expert]);
  return sums;
}

// Expert ids in the order of (node, place of their group there, id).
std::vector<int> experts_by_node(std::span<const double> weight, const PlacementSizes& sizes) {
  const Packing packing = balanced_packing(sums_of_groups(weight, sizes.groups), sizes.nodes);
  const int size = static_cast<int>(weight.size()) / sizes.groups;
  std::vector<int> order(weight.size());
  for (int group = 0; group < sizes.groups; ++group) {
    const int at = packing.pack[group] * (sizes.groups / sizes.nodes) + packing.place[group];
    std::iota(order.begin() + at * size, order.begin() + (at + 1) * size, group * size);
  }
  return order;
}

// One node: its experts, copied and spread over its ranks. Appends the slots.
void place_on_node(std::span<const double> weight, std::span<const int> experts, int num_slots, int num_ranks,
                   ExpertSlots& slots) {
  std::vector<float> own;
  for (const int expert : experts) own.push_back(static_cast<float>(weight[expert]));
  const Replication copies = replicate_experts(own, num_slots);
  std::vector<float> shares;
  for (const int local : copies.expert) shares.push_back(own[local] / static_cast<float>(copies.copies[local]));
  const Packing packing = balanced_packing(shares, num_ranks);
  const size_t first = slots.expert.size();
  slots.expert.resize(first + static_cast<size_t>(num_slots));
  slots.copy.resize(slots.expert.size());
  for (int i = 0; i < num_slots; ++i) {
    const size_t slot = first + static_cast<size_t>(packing.pack[i] * (num_slots / num_ranks) + packing.place[i]);
    slots.expert[slot] = experts[copies.expert[i]];
    slots.copy[slot] = copies.copy[i];
  }
}

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

void check_eplb(int num_experts, const PlacementSizes& sizes) {
  const PlacementSizes used = used_sizes(sizes);
  const auto divides = [&](int whole, const char* what, int part, const char* parts) {
    CADRE_CHECK(whole % part == 0, fmt::format("policy eplb: {} {} do not divide {} {}", part, parts, whole, what),
                "policy cadre takes any sizes");
  };
  divides(num_experts, "experts", used.groups, "groups");
  divides(used.ranks, "ranks", used.nodes, "nodes");
  divides(used.slots, "replicas", used.ranks, "ranks");
  CADRE_CHECK(used.slots >= num_experts,
              fmt::format("{} replicas for {} experts, allowed: at least one each", used.slots, num_experts),
              "raise --replicas");
}

bool eplb_can_run(int num_experts, const PlacementSizes& sizes) {
  const PlacementSizes used = used_sizes(sizes);
  return num_experts % used.groups == 0 && used.ranks % used.nodes == 0 && used.slots % used.ranks == 0 &&
         used.slots >= num_experts;
}

ExpertSlots eplb(std::span<const double> weight, const PlacementSizes& sizes) {
  const PlacementSizes used = used_sizes(sizes);
  const std::vector<int> by_node = experts_by_node(weight, used);
  const size_t experts_of_node = weight.size() / static_cast<size_t>(used.nodes);
  ExpertSlots slots;
  slots.first_slot = even_parts(used.slots, used.ranks);
  for (size_t node = 0; node < static_cast<size_t>(used.nodes); ++node) {
    place_on_node(weight, std::span(by_node).subspan(node * experts_of_node, experts_of_node), used.slots / used.nodes,
                  used.ranks / used.nodes, slots);
  }
  return slots;
}

Packing balanced_packing(std::span<const float> weight, int num_packs) {
  const auto num_items = static_cast<int>(weight.size());
  const int room = num_items / num_packs;
  Packing packing{std::vector<int>(weight.size()), std::vector<int>(weight.size(), 0)};
  std::vector<int> order(weight.size());
  std::iota(order.begin(), order.end(), 0);
  if (room == 1) {  // nothing to balance: item i is pack i
    packing.pack = order;
    return packing;
  }
  std::ranges::stable_sort(order, [&](int a, int b) { return weight[a] > weight[b]; });
  std::vector<float> sums(static_cast<size_t>(num_packs), 0.0F);
  std::vector<int> counts(static_cast<size_t>(num_packs), 0);
  for (const int item : order) {
    int lightest = -1;
    for (int pack = 0; pack < num_packs; ++pack) {
      if (counts[pack] < room && (lightest < 0 || sums[pack] < sums[lightest])) lightest = pack;
    }
    packing.pack[item] = lightest;
    packing.place[item] = counts[lightest]++;
    sums[lightest] += weight[item];
  }
  return packing;
}

Replication replicate_experts(std::span<const float> weight, int slots) {
  Replication replication;
  replication.expert.resize(weight.size());
  std::iota(replication.expert.begin(), replication.expert.end(), 0);
  replication.copy.assign(weight.size(), 0);
  replication.copies.assign(weight.size(), 1);
  while (static_cast<int>(replication.expert.size()) < slots) {
    int busiest = 0;
    const auto load = [&](int expert) { return weight[expert] / static_cast<float>(replication.copies[expert]); };
    for (int expert = 1; expert < static_cast<int>(weight.size()); ++expert) {
      if (load(expert) > load(busiest)) busiest = expert;
    }
    replication.expert.push_back(busiest);
    replication.copy.push_back(replication.copies[busiest]++);
  }
  return replication;
}

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
