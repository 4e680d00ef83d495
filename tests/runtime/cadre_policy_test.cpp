// SPDX-License-Identifier: Apache-2.0
// What Cadre's placement promises, over random cases of all sizes: it is legal, never worse than eplb or than the experts in
// a row, and moves little from a placement before.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "runtime/placement/policies.hpp"

namespace cadre::cadre_policy_test {
namespace {

// Loads are sums of up to a few hundred shares, in another order: some 1e-14 of a load.
constexpr double kRounding = 1e-11;

struct Case {
  std::vector<double> weight;
  PlacementSizes sizes;
};

// Sizes that divide, as eplb wants them, in every second case. Loads even, heavy-tailed, many equal, or nearly all zero.
Case random_case(uint64_t number) {
  const Random random(11, "placement", number);
  uint64_t draw = 0;
  const auto below = [&](uint64_t bound) { return static_cast<int>(random.below(bound, draw++)); };
  Case one;
  int num_experts = 0;
  if (number % 2 == 0) {
    const int ranks_of_node = 1 + below(4);
    one.sizes.nodes = 1 + below(4);
    one.sizes.groups = one.sizes.nodes * (1 + below(3));
    one.sizes.ranks = one.sizes.nodes * ranks_of_node;
    num_experts = one.sizes.groups * (1 + below(8));
    one.sizes.slots = (num_experts + one.sizes.ranks - 1) / one.sizes.ranks * one.sizes.ranks;
    one.sizes.slots += one.sizes.ranks * below(4);
  } else {
    num_experts = 1 + below(60);
    one.sizes.ranks = 1 + below(20);
    one.sizes.slots = num_experts + below(40);
    one.sizes.nodes = 1 + below(static_cast<uint64_t>(one.sizes.ranks));
    one.sizes.groups = 1 + below(static_cast<uint64_t>(num_experts));
  }
  const int kind = below(4);
  for (int expert = 0; expert < num_experts; ++expert) {
    const double u = random.uniform(draw++);
    const double load = kind == 0   ? 1000.0 * u
                        : kind == 1 ? std::exp(6.0 * u)
                        : kind == 2 ? static_cast<double>(static_cast<int>(4.0 * u))
                                    : (u < 0.9 ? 0.0 : 100.0 * u);
    one.weight.push_back(load);
  }
  return one;
}

double peak(const ExpertSlots& slots, const std::vector<double>& weight) {
  return std::ranges::max(rank_loads(slots, weight));
}

// Whether another expert of the same node, or none, in this slot would do, without a peak above that of eplb.
bool can_be_replaced(const ExpertSlots& slots, int rank, int slot, const Case& one) {
  const bool grouped = one.sizes.nodes > 1 && one.sizes.groups % one.sizes.nodes == 0;
  const int ranks_of_node = grouped ? one.sizes.ranks / one.sizes.nodes : one.sizes.ranks;
  const int node = rank / ranks_of_node;
  const double most = peak(eplb(one.weight, one.sizes), one.weight) * (1.0 - 1e-9);
  std::set<int> others = {ExpertSlots::kEmpty};
  for (int i = slots.first_slot[node * ranks_of_node]; i < slots.first_slot[(node + 1) * ranks_of_node]; ++i) {
    if (std::ranges::count(slots.of_rank(rank), slots.expert[i]) == 0) others.insert(slots.expert[i]);
  }
  return std::ranges::any_of(others, [&](int other) {
    ExpertSlots changed = slots;
    changed.expert[slot] = other;
    return peak(changed, one.weight) < most;
  });
}

// Every slot and copy numbered right, every expert somewhere, none twice on a rank but where eplb's balance needs it. Returns
// how many are.
int expect_legal(const ExpertSlots& slots, const Case& one) {
  const auto num_experts = static_cast<int>(one.weight.size());
  EXPECT_EQ(slots.num_slots(), one.sizes.slots);
  EXPECT_EQ(slots.first_slot, even_parts(one.sizes.slots, one.sizes.ranks));
  EXPECT_GE(std::ranges::min(slots.expert), ExpertSlots::kEmpty);
  EXPECT_LT(std::ranges::max(slots.expert), num_experts);
  int doubles = 0;
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    std::set<int> held;
    for (int slot = slots.first_slot[rank]; slot < slots.first_slot[rank + 1]; ++slot) {
      const int expert = slots.expert[slot];
      if (expert == ExpertSlots::kEmpty || held.insert(expert).second) continue;
      ++doubles;
      const bool has_reason = eplb_can_run(num_experts, one.sizes) && !can_be_replaced(slots, rank, slot, one);
      EXPECT_TRUE(has_reason) << "expert " << expert << " twice on rank " << rank;
    }
  }
  const std::vector<int> copies = count_copies(slots, num_experts);
  EXPECT_EQ(std::ranges::count(copies, 0), 0);
  ExpertSlots numbered = slots;
  number_copies(numbered, num_experts);
  EXPECT_EQ(numbered, slots);
  return doubles;
}

bool has_doubles(const ExpertSlots& slots) {
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    const std::span<const int> held = slots.of_rank(rank);
    if (std::set<int>(held.begin(), held.end()).size() < held.size()) return true;
  }
  return false;
}

void expect_not_worse(const ExpertSlots& slots, const Case& one) {
  const auto num_experts = static_cast<int>(one.weight.size());
  const double found = peak(slots, one.weight);
  EXPECT_LE(found, peak(contiguous_slots(num_experts, one.sizes.ranks), one.weight) * (1.0 + kRounding)) << "in a row";
  if (eplb_can_run(num_experts, one.sizes)) {
    EXPECT_LE(found, peak(eplb(one.weight, one.sizes), one.weight) * (1.0 + kRounding)) << "eplb";
  }
}

// An empty slot would make its rank the busiest with any expert that it has not.
void expect_empty_slots_are_of_no_use(const ExpertSlots& slots, const Case& one) {
  const std::vector<int> copies = count_copies(slots, static_cast<int>(one.weight.size()));
  const std::vector<double> loads = rank_loads(slots, one.weight);
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    const std::span<const int> held = slots.of_rank(rank);
    if (std::ranges::count(held, ExpertSlots::kEmpty) == 0) continue;
    for (int expert = 0; expert < static_cast<int>(one.weight.size()); ++expert) {
      if (std::ranges::find(held, expert) != held.end()) continue;
      EXPECT_GT(loads[rank] + one.weight[expert] / (copies[expert] + 1), std::ranges::max(loads));
    }
  }
}

TEST(CadrePolicy, is_legal_and_never_worse_in_a_thousand_cases) {
  int with_eplb = 0;
  int better = 0;
  int not_full = 0;
  int with_doubles = 0;
  int eplb_with_doubles = 0;
  for (uint64_t number = 0; number < 1000; ++number) {
    SCOPED_TRACE(number);
    const Case one = random_case(number);
    const ExpertSlots slots = cadre_placement(one.weight, one.sizes);
    with_doubles += expect_legal(slots, one) > 0 ? 1 : 0;
    expect_not_worse(slots, one);
    if (one.sizes.nodes == 1) expect_empty_slots_are_of_no_use(slots, one);
    not_full += std::ranges::count(slots.expert, ExpertSlots::kEmpty) > 0 ? 1 : 0;
    if (!eplb_can_run(static_cast<int>(one.weight.size()), one.sizes)) continue;
    ++with_eplb;
    eplb_with_doubles += has_doubles(eplb(one.weight, one.sizes)) ? 1 : 0;
    better += peak(slots, one.weight) < peak(eplb(one.weight, one.sizes), one.weight) * (1.0 - 1e-9) ? 1 : 0;
  }
  // The cases are of both kinds, and the policy is no copy of eplb.
  EXPECT_GT(with_eplb, 400);
  EXPECT_LT(with_eplb, 900);
  EXPECT_GT(better, 150);
  EXPECT_LE(with_doubles, 10);
  EXPECT_GT(eplb_with_doubles, 100);
  RecordProperty("better_than_eplb", better);
  RecordProperty("not_full", not_full);
  RecordProperty("with_doubles", with_doubles);
  RecordProperty("eplb_with_doubles", eplb_with_doubles);
}

TEST(CadrePolicy, keeps_groups_on_nodes_where_that_is_not_worse) {
  const Case one = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                    {.slots = 16, .groups = 4, .nodes = 2, .ranks = 8}};
  const ExpertSlots slots = cadre_placement(one.weight, one.sizes);
  std::vector<std::set<int>> nodes_of_group(4);
  for (int slot = 0; slot < 16; ++slot) nodes_of_group[slots.expert[slot] / 3].insert(slot / 8);
  for (const std::set<int>& nodes : nodes_of_group) EXPECT_EQ(nodes.size(), 1U);
  expect_not_worse(slots, one);
}

// Two equal experts on two ranks: a third slot can only do harm.
TEST(CadrePolicy, leaves_a_slot_empty_rather_than_make_it_worse) {
  const std::vector<double> weight = {1.0, 1.0};
  const ExpertSlots slots = cadre_placement(weight, {.slots = 3, .ranks = 2});
  EXPECT_EQ(std::ranges::count(slots.expert, ExpertSlots::kEmpty), 1);
  EXPECT_EQ(max_over_mean(rank_loads(slots, weight)), 1.0);
  // More slots than all ranks together can use.
  const ExpertSlots all = cadre_placement(weight, {.slots = 9, .ranks = 2});
  EXPECT_EQ(all.expert, (std::vector<int>{0, 1, -1, -1, -1, 0, 1, -1, -1}));
}

TEST(CadrePolicy, no_load_is_even) {
  const std::vector<double> weight(6, 0.0);
  const ExpertSlots slots = cadre_placement(weight, {.slots = 8, .ranks = 4});
  expect_legal(slots, {weight, {.slots = 8, .ranks = 4}});
  EXPECT_EQ(max_over_mean(rank_loads(slots, weight)), 1.0);
}

// The load of every expert a little different: at most by the given share.
std::vector<double> drifted(const std::vector<double>& weight, double share, uint64_t number) {
  const Random random(12, "drift", number);
  std::vector<double> later;
  for (size_t i = 0; i < weight.size(); ++i)
    later.push_back(weight[i] * (1.0 + share * (2.0 * random.uniform(i) - 1.0)));
  return later;
}

TEST(CadrePolicy, what_is_still_good_stays) {
  for (uint64_t number = 0; number < 300; ++number) {
    SCOPED_TRACE(number);
    const Case one = random_case(number);
    const ExpertSlots before = cadre_placement(one.weight, one.sizes);
    EXPECT_EQ(cadre_placement(one.weight, one.sizes, &before), before);
  }
}

TEST(CadrePolicy, moves_little_and_keeps_what_it_promises) {
  int64_t moved_afresh = 0;
  int64_t moved = 0;
  int64_t copies = 0;
  for (uint64_t number = 0; number < 300; ++number) {
    SCOPED_TRACE(number);
    Case one = random_case(number);
    const ExpertSlots before = cadre_placement(one.weight, one.sizes);
    one.weight = drifted(one.weight, 0.2, number);
    const ExpertSlots afresh = cadre_placement(one.weight, one.sizes);
    const ExpertSlots after = cadre_placement(one.weight, one.sizes, &before);
    expect_legal(after, one);
    expect_not_worse(after, one);
    EXPECT_LE(copies_moved(before, after), copies_moved(before, afresh));
    moved += copies_moved(before, after);
    moved_afresh += copies_moved(before, afresh);
    copies += one.sizes.slots;
  }
  // A fresh plan would send about half of all copies; a fifth of that is plenty.
  EXPECT_GT(moved_afresh, copies / 3);
  EXPECT_LT(moved, moved_afresh / 5);
  RecordProperty("moved", static_cast<int>(moved));
  RecordProperty("moved_afresh", static_cast<int>(moved_afresh));
}

// A placement of eplb, or one with more or fewer slots, is a place to start from too.
TEST(CadrePolicy, goes_on_from_any_placement) {
  for (uint64_t number = 0; number < 200; ++number) {
    SCOPED_TRACE(number);
    Case one = random_case(number);
    const auto num_experts = static_cast<int>(one.weight.size());
    const ExpertSlots before = eplb_can_run(num_experts, one.sizes) ? eplb(one.weight, one.sizes)
                                                                    : contiguous_slots(num_experts, one.sizes.ranks);
    one.weight = drifted(one.weight, 0.9, number);
    const ExpertSlots after = cadre_placement(one.weight, one.sizes, &before);
    expect_legal(after, one);
    expect_not_worse(after, one);
    Case smaller = one;
    smaller.sizes.slots = num_experts;
    const ExpertSlots fewer = cadre_placement(one.weight, smaller.sizes, &after);
    expect_legal(fewer, smaller);
    expect_not_worse(fewer, smaller);
  }
}

TEST(CadrePolicy, refuses_what_cannot_be) {
  const std::vector<double> weight(4, 1.0);
  EXPECT_THROW(cadre_placement(weight, {.slots = 3, .ranks = 2}), Error);
  const ExpertSlots before = contiguous_slots(4, 3);
  EXPECT_THROW(cadre_placement(weight, {.slots = 4, .ranks = 2}, &before), Error);
}

}  // namespace
}  // namespace cadre::cadre_policy_test
