// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"

namespace cadre::plan_test {
namespace {

// top_k different experts for each token; about one slot in eight is masked.
std::vector<int32_t> random_routing(int64_t num_tokens, int top_k, int num_experts, uint64_t seed) {
  const Random random(seed, "routing", 0);
  std::vector<int32_t> ids;
  uint64_t draw = 0;
  for (int64_t token = 0; token < num_tokens; ++token) {
    std::set<int32_t> chosen;
    while (static_cast<int>(chosen.size()) < top_k) {
      const auto expert = static_cast<int32_t>(random.below(static_cast<uint64_t>(num_experts), draw++));
      if (chosen.insert(expert).second) ids.push_back(random.below(8, draw++) == 0 ? -1 : expert);
    }
  }
  return ids;
}

TEST(ExpertMap, is_as_even_as_possible) {
  const ExpertMap map = ExpertMap::contiguous(10, 4);
  EXPECT_EQ(map.experts_of(0).size(), 3U);
  EXPECT_EQ(map.experts_of(1).size(), 3U);
  EXPECT_EQ(map.experts_of(2).size(), 2U);
  EXPECT_EQ(map.experts_of(3).size(), 2U);
  EXPECT_EQ(map.owner(6), 2);
  EXPECT_EQ(map.local_index(7), 1);
  EXPECT_TRUE(ExpertMap::contiguous(2, 3).experts_of(2).empty());
}

TEST(ExpertMap, knows_replicas) {
  const ExpertMap map = ExpertMap::of(3, {{1, 0}, {1, 2}});
  EXPECT_EQ(map.num_replicas(), 4);
  EXPECT_EQ(map.holders(1), (std::vector<int>{0, 1}));
  EXPECT_EQ(map.owner(1), 0);
  EXPECT_EQ(map.first_replica(1), 1);
  EXPECT_EQ(map.replica_rank(2), 1);
  EXPECT_EQ(map.replica_index(1), 1);
  EXPECT_EQ(map.replica_index(2), 0);
  EXPECT_EQ(map.local_index(2), 1);
  EXPECT_EQ(ExpertMap::of(3, {{0, 1}, {2}}), ExpertMap::contiguous(3, 2));
  // Named twice on a rank: there once, with two shares.
  const ExpertMap twice = ExpertMap::of(2, {{0, 0, 1}, {0}});
  EXPECT_EQ(twice.experts_of(0).size(), 2U);
  EXPECT_EQ(twice.num_replicas(), 4);
  EXPECT_EQ(twice.holders(0), (std::vector<int>{0, 1}));
  EXPECT_THROW(ExpertMap::of(3, {{0, 1}}), Error);
  EXPECT_THROW(ExpertMap::of(2, {{0, 1, 2}}), Error);
}

TEST(DispatchPlan, equals_the_worked_example) {
  const std::vector<int32_t> ids = {1, 0, 3, 0};
  const DispatchPlan plan = make_dispatch_plan(ids, 2, ExpertMap::contiguous(4, 2));
  EXPECT_EQ(plan.row_counts, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(plan.slot_counts, (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(plan.row_token, (std::vector<int32_t>{0, 1, 1}));
  EXPECT_EQ(plan.row_slots, (std::vector<int32_t>{0, 2, 3, 4}));
  EXPECT_EQ(plan.slots, (std::vector<int32_t>{0, 1, 3, 2}));
  EXPECT_EQ(plan.slot_expert, (std::vector<int32_t>{1, 0, 0, 1}));
  EXPECT_EQ(plan.token_rows, (std::vector<int32_t>{0, 1, 3}));
  EXPECT_EQ(plan.token_row, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(plan.token_slot, (std::vector<int32_t>{0, 1, 3, 2}));
}

// For any routing and 1,024 ranks: every slot travels exactly once to the owner of its expert, a token once a rank, and
// the way back finds every row.
TEST(DispatchPlan, sends_each_token_once_to_each_rank_that_needs_it) {
  constexpr int kExperts = 2500;
  constexpr int kTopK = 8;
  const ExpertMap map = ExpertMap::contiguous(kExperts, 1024);
  const std::vector<int32_t> ids = random_routing(500, kTopK, kExperts, 1);
  const DispatchPlan plan = make_dispatch_plan(ids, kTopK, map);

  std::set<std::pair<int, int>> needed;  // (rank, token)
  int64_t num_masked = 0;
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    if (ids[slot] < 0) {
      ++num_masked;
    } else {
      needed.emplace(map.owner(ids[slot]), static_cast<int>(slot) / kTopK);
    }
  }
  ASSERT_GT(num_masked, 100);
  ASSERT_LT(needed.size(), ids.size() - static_cast<size_t>(num_masked)) << "no token has two experts on one rank";
  EXPECT_EQ(plan.num_dropped, num_masked);
  EXPECT_EQ(plan.num_slots() + plan.num_dropped, static_cast<int64_t>(ids.size()));

  std::set<std::pair<int, int>> sent;
  std::set<int32_t> slots_sent;
  for (int rank = 0; rank < 1024; ++rank) {
    for (int64_t row = plan.row_offsets[rank]; row < plan.row_offsets[rank + 1]; ++row) {
      const int token = plan.row_token[row];
      EXPECT_TRUE(sent.emplace(rank, token).second);
      if (row > plan.row_offsets[rank]) {
        EXPECT_LT(plan.row_token[row - 1], token);
      }
      for (int32_t at = plan.row_slots[row]; at < plan.row_slots[row + 1]; ++at) {
        const int32_t slot = plan.slots[at];
        EXPECT_TRUE(slots_sent.insert(slot).second);
        EXPECT_EQ(slot / kTopK, token);
        EXPECT_EQ(map.owner(ids[slot]), rank);
        EXPECT_EQ(map.local_index(ids[slot]), plan.slot_expert[at]);
      }
    }
  }
  EXPECT_EQ(sent, needed);
  for (int token = 0; token < plan.num_tokens; ++token) {
    for (int32_t i = plan.token_rows[token]; i < plan.token_rows[token + 1]; ++i) {
      EXPECT_EQ(plan.row_token[plan.token_row[i]], token);
    }
    for (int32_t i = plan.token_slots[token]; i < plan.token_slots[token + 1]; ++i) {
      EXPECT_EQ(plan.slots[plan.token_slot[i]] / kTopK, token);
      if (i > plan.token_slots[token]) {
        EXPECT_LT(plan.slots[plan.token_slot[i - 1]], plan.slots[plan.token_slot[i]]);
      }
    }
  }
}

TEST(DispatchPlan, nothing_to_send_is_legal_and_foreign_experts_are_not) {
  const ExpertMap map = ExpertMap::contiguous(4, 2);
  EXPECT_EQ(make_dispatch_plan({}, 2, map).num_rows(), 0);
  const std::vector<int32_t> masked(6, -1);
  EXPECT_EQ(make_dispatch_plan(masked, 2, map).num_dropped, 6);
  const std::vector<int32_t> foreign = {0, 4};
  EXPECT_THROW(make_dispatch_plan(foreign, 2, map), Error);
}

// What a peer announces is checked before anything is written at the places that it names.
TEST(ExpertBatch, records_that_contradict_each_other_are_a_fault_of_the_peer) {
  const auto kind_of = [](const std::vector<int32_t>& counts, const std::vector<int32_t>& experts) {
    try {
      make_expert_batch(counts, experts, 2);
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::internal;
  };
  EXPECT_EQ(make_expert_batch(std::vector<int32_t>{1, 2}, std::vector<int32_t>{0, 1, 0}, 2).place_row.size(), 3);
  EXPECT_EQ(kind_of({1, 2000000}, {0, 1, 0}), ErrorKind::peer) << "more slots than came";
  EXPECT_EQ(kind_of({1, 1}, {0, 1, 0}), ErrorKind::peer) << "fewer slots than came";
  EXPECT_EQ(kind_of({4, -1}, {0, 1, 0}), ErrorKind::peer) << "a negative count";
  EXPECT_EQ(kind_of({1, 2}, {0, 2, 0}), ErrorKind::peer) << "an expert that this rank does not have";
  EXPECT_EQ(kind_of({1, 2}, {0, -1, 0}), ErrorKind::peer);
  EXPECT_EQ(exit_code(ErrorKind::peer), 7);
}

// Each source shares the slots of an expert out evenly among its replicas; nothing else about the plan changes.
TEST(DispatchPlan, replicas_take_even_shares) {
  constexpr int kExperts = 6;
  constexpr int kTopK = 2;
  const ExpertMap map = ExpertMap::of(kExperts, {{0, 1, 2}, {2, 3, 0}, {4, 5, 0, 2}, {2}});  // 3 of expert 0, 4 of 2
  std::vector<int64_t> shares(static_cast<size_t>(map.num_replicas()), 0);
  std::vector<int64_t> slots_of(kExperts, 0);
  for (int source = 0; source < 4; ++source) {
    const std::vector<int32_t> ids = random_routing(101, kTopK, kExperts, static_cast<uint64_t>(source) + 5);
    const std::vector<int32_t> replicas = choose_replicas(ids, kTopK, map, source);
    std::vector<int64_t> own(shares.size(), 0);
    for (size_t slot = 0; slot < ids.size(); ++slot) {
      if (ids[slot] < 0) {
        ASSERT_EQ(replicas[slot], -1);
        continue;
      }
      ASSERT_GE(replicas[slot], map.first_replica(ids[slot]));
      ASSERT_LT(replicas[slot], map.first_replica(ids[slot] + 1));
      ++own[replicas[slot]];
      ++slots_of[ids[slot]];
    }
    for (int expert = 0; expert < kExperts; ++expert) {
      const auto first = own.begin() + map.first_replica(expert);
      const auto [least, most] = std::minmax_element(first, own.begin() + map.first_replica(expert + 1));
      EXPECT_LE(*most - *least, 1);
    }
    for (size_t replica = 0; replica < own.size(); ++replica) shares[replica] += own[replica];

    const DispatchPlan plan = make_dispatch_plan(ids, kTopK, map, source);
    for (int rank = 0; rank < 4; ++rank) {
      for (int64_t at = plan.slot_offsets[rank]; at < plan.slot_offsets[rank + 1]; ++at) {
        const int32_t replica = replicas[plan.slots[at]];
        EXPECT_EQ(map.replica_rank(replica), rank);
        EXPECT_EQ(map.experts_of(rank)[plan.slot_expert[at]], ids[plan.slots[at]]);
      }
    }
  }
  // Over the sources the odd ones go to different replicas: within one a source, less where they cancel.
  for (const int expert : {0, 2}) {
    const int count = map.first_replica(expert + 1) - map.first_replica(expert);
    for (int replica = map.first_replica(expert); replica < map.first_replica(expert + 1); ++replica) {
      EXPECT_NEAR(static_cast<double>(shares[replica]), static_cast<double>(slots_of[expert]) / count, 4.0);
    }
  }
  const std::vector<int32_t> foreign = {0, 6};
  EXPECT_THROW(make_dispatch_plan(foreign, 2, map), Error);
}

// A map without replicas chooses nothing: the plan does not depend on the source.
TEST(DispatchPlan, without_replicas_the_source_does_not_matter) {
  const ExpertMap map = ExpertMap::contiguous(10, 4);
  const std::vector<int32_t> ids = random_routing(50, 3, 10, 2);
  EXPECT_EQ(make_dispatch_plan(ids, 3, map, 0), make_dispatch_plan(ids, 3, map, 3));
  EXPECT_EQ(choose_replicas(ids, 3, map, 2), ids);
}

TEST(ExpertBatch, keeps_source_order_inside_each_expert) {
  // Three received rows with 2, 1 and 2 slots.
  const std::vector<int32_t> slot_counts = {2, 1, 2};
  const std::vector<int32_t> experts = {1, 0, 1, 0, 1};
  const ExpertBatch batch = make_expert_batch(slot_counts, experts, 3);
  EXPECT_EQ(batch.expert_offsets, (std::vector<int32_t>{0, 2, 5, 5}));
  EXPECT_EQ(batch.place_row, (std::vector<int32_t>{0, 2, 0, 1, 2}));
  EXPECT_EQ(batch.place_slot, (std::vector<int32_t>{1, 3, 0, 2, 4}));
  EXPECT_EQ(batch.row_places, (std::vector<int32_t>{0, 2, 3, 5}));
  EXPECT_EQ(batch.row_place, (std::vector<int32_t>{2, 0, 3, 1, 4}));
  EXPECT_EQ(batch.slot_row, (std::vector<int32_t>{0, 0, 1, 2, 2}));
}

}  // namespace
}  // namespace cadre::plan_test
