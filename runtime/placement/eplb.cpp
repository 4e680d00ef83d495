// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/eplb.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/check.hpp"

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

}  // namespace cadre
