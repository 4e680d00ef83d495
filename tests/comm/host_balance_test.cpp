// SPDX-License-Identifier: Apache-2.0
// Rows that are cut over the ranks of a host: no rank has more than the mean and a tile, every row is computed once, by its
// owner or by a rank of its host.
#include "comm/exchange/host_balance.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "launch/bench/workloads.hpp"

namespace cadre::host_balance_test {
namespace {

// Rows that each rank of the map computes.
std::vector<int64_t> loads_of(const BalancedRows& balanced) {
  std::vector<int64_t> loads(static_cast<size_t>(balanced.map.num_ranks()), 0);
  for (int replica = 0; replica < balanced.map.num_replicas(); ++replica) {
    loads[static_cast<size_t>(balanced.map.replica_rank(replica))] += balanced.rows[static_cast<size_t>(replica)];
  }
  return loads;
}

void expect_even(const BalancedRows& balanced, const std::vector<int>& host_of_rank, int64_t tile) {
  const std::vector<int64_t> loads = loads_of(balanced);
  std::map<int, std::vector<int64_t>> of_host;
  for (size_t rank = 0; rank < loads.size(); ++rank) of_host[host_of_rank[rank]].push_back(loads[rank]);
  for (const auto& [host, rows] : of_host) {
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    const auto count = static_cast<int64_t>(rows.size());
    const int64_t most_tile = tile > 0 ? tile : balance_tile((total + count - 1) / count);
    EXPECT_LE(std::ranges::max(rows) * count, total + most_tile * count) << "host " << host;
  }
}

// Every row of every expert is with one rank, which is on the host of the owner.
void expect_whole(const BalancedRows& balanced, const std::vector<int64_t>& counts, const ExpertMap& owners,
                  const std::vector<int>& host_of_rank) {
  const auto num_experts = static_cast<size_t>(owners.num_experts());
  for (int expert = 0; expert < owners.num_experts(); ++expert) {
    int64_t rows = 0;
    for (size_t i = static_cast<size_t>(expert); i < counts.size(); i += num_experts) rows += counts[i];
    int64_t computed = 0;
    bool owner_is_there = false;
    for (int r = balanced.map.first_replica(expert); r < balanced.map.first_replica(expert + 1); ++r) {
      const int rank = balanced.map.replica_rank(r);
      computed += balanced.rows[static_cast<size_t>(r)];
      owner_is_there |= rank == owners.owner(expert);
      EXPECT_EQ(host_of_rank[static_cast<size_t>(rank)], host_of_rank[static_cast<size_t>(owners.owner(expert))]);
    }
    EXPECT_EQ(computed, rows) << "expert " << expert;
    EXPECT_TRUE(owner_is_there) << "expert " << expert;
  }
}

TEST(HostBalance, cuts_the_largest_expert_of_the_busiest_rank) {
  const ExpertMap owners = ExpertMap::contiguous(4, 2);
  // Of two sources: 10 2 | 3 1 rows together.
  const std::vector<int64_t> counts = {7, 0, 1, 1, 3, 2, 2, 0};
  const BalancedRows balanced = balance_rows(counts, owners, std::vector<int>{0, 0}, 1);
  EXPECT_EQ(balanced.map, ExpertMap::of(4, {{0, 1}, {0, 2, 3}}));
  EXPECT_EQ(balanced.rows, (std::vector<int64_t>{6, 4, 2, 3, 1}));
  // Rank 0 has rows 0 .. 6 of expert 0, rank 1 rows 7 .. 9: the first six are computed on rank 0 (replica 0).
  const std::vector<int32_t> of_rank_0 = {0, -1, 0, 2, 0, 0, 0, 0, 3, 0};
  EXPECT_EQ(choose_balanced(of_rank_0, balanced, counts, 0), (std::vector<int32_t>{0, -1, 0, 3, 0, 0, 0, 0, 4, 1}));
  const std::vector<int32_t> of_rank_1 = {0, 1, 0, 2, 1, 2, 0, -1};
  EXPECT_EQ(choose_balanced(of_rank_1, balanced, counts, 1), (std::vector<int32_t>{1, 2, 1, 3, 2, 3, 1, -1}));
  // One more row than was counted.
  EXPECT_THROW(choose_balanced(std::vector<int32_t>{0, 0, 0, 0}, balanced, counts, 1), Error);
}

TEST(HostBalance, leaves_alone_what_is_even_to_a_tile) {
  const ExpertMap owners = ExpertMap::contiguous(4, 2);
  const std::vector<int64_t> counts = {5, 5, 5, 1, 5, 5, 5, 1};  // 20 and 12: the mean is 16
  EXPECT_EQ(balance_rows(counts, owners, std::vector<int>{0, 0}, 4).map, owners);
  EXPECT_NE(balance_rows(counts, owners, std::vector<int>{0, 0}, 3).map, owners);
  EXPECT_EQ(balance_rows(counts, owners, std::vector<int>{0, 1}, 1).map, owners) << "rows left their host";
  EXPECT_EQ(balance_rows(std::vector<int64_t>(8, 0), owners, std::vector<int>{0, 0}, 1).map, owners);
}

TEST(HostBalance, moves_an_expert_whole_rather_than_leave_a_few_rows) {
  const ExpertMap owners = ExpertMap::contiguous(4, 2);
  const std::vector<int64_t> counts = {20, 0,  0, 0,
                                       20, 43, 0, 1};  // 83 and 1: the mean is 42, of expert 1 two rows would stay
  const BalancedRows balanced = balance_rows(counts, owners, std::vector<int>{0, 0}, 4);
  EXPECT_EQ(balanced.map, ExpertMap::of(4, {{0, 1}, {1, 2, 3}}));
  EXPECT_EQ(balanced.rows, (std::vector<int64_t>{40, 0, 43, 0, 1}));
  EXPECT_EQ(balance_rows(counts, owners, std::vector<int>{0, 0}, 1).rows, (std::vector<int64_t>{40, 2, 41, 0, 1}));
}

TEST(HostBalance, keeps_any_counts_even_and_whole) {
  const Random random(7, "counts", 0);
  uint64_t draw = 0;
  int cut = 0;
  for (int round = 0; round < 200; ++round) {
    const int ranks = 1 + static_cast<int>(random.below(8, draw++));
    const int experts = 1 + static_cast<int>(random.below(24, draw++));
    const int hosts = 1 + static_cast<int>(random.below(3, draw++));
    const ExpertMap owners = ExpertMap::contiguous(experts, ranks);
    std::vector<int> host_of_rank;
    for (int rank = 0; rank < ranks; ++rank) host_of_rank.push_back(rank * hosts / ranks);
    std::vector<int64_t> counts;
    for (int i = 0; i < ranks * experts; ++i) {
      const auto size = static_cast<int64_t>(random.below(5, draw++));
      counts.push_back(size < 2 ? 0 : static_cast<int64_t>(random.below(uint64_t{1} << (3 * size), draw++)));
    }
    for (const int64_t tile : {0, 1, 5}) {
      const BalancedRows balanced = balance_rows(counts, owners, host_of_rank, tile);
      expect_even(balanced, host_of_rank, tile);
      expect_whole(balanced, counts, owners, host_of_rank);
      cut += balanced.map.num_replicas() > experts ? 1 : 0;
      // A cut uses up a surplus, a room or an expert.
      EXPECT_LE(balanced.map.num_replicas(), 2 * experts + ranks);
    }
  }
  EXPECT_GT(cut, 100);
}

TEST(HostBalance, evens_out_every_workload) {
  constexpr int kRanks = 4;
  constexpr int kTopK = 4;
  const ExpertMap owners = ExpertMap::contiguous(16, kRanks);
  const std::vector<int> one_host(kRanks, 0);
  for (int workload = 0; workload < kNumWorkloads; ++workload) {
    for (const int64_t iteration : {0, 1, 2, 3}) {
      SCOPED_TRACE(testing::Message() << name_of(static_cast<Workload>(workload)) << ", iteration " << iteration);
      std::vector<std::vector<int32_t>> ids;
      std::vector<int64_t> counts;
      for (int rank = 0; rank < kRanks; ++rank) {
        ids.push_back(draw_routing(static_cast<Workload>(workload),
                                   {.tokens = 1024, .top_k = kTopK, .rank = rank, .iteration = iteration}, owners));
        std::ranges::copy(count_slots(ids.back(), kTopK, owners.num_experts()), std::back_inserter(counts));
      }
      const BalancedRows balanced = balance_rows(counts, owners, one_host);
      expect_even(balanced, one_host, 0);
      expect_whole(balanced, counts, owners, one_host);
      const std::vector<int64_t> loads = loads_of(balanced);
      const double mean = static_cast<double>(std::accumulate(loads.begin(), loads.end(), int64_t{0})) / kRanks;
      EXPECT_LE(static_cast<double>(std::ranges::max(loads)), std::max(1.02 * mean, mean + 17.0));
      // The plans of all sources give each replica the rows that it is to compute.
      std::vector<int64_t> arrived(balanced.rows.size(), 0);
      for (int rank = 0; rank < kRanks; ++rank) {
        for (const int32_t replica : choose_balanced(ids[static_cast<size_t>(rank)], balanced, counts, rank)) {
          ++arrived[static_cast<size_t>(replica)];
        }
      }
      EXPECT_EQ(arrived, balanced.rows);
    }
  }
}

}  // namespace
}  // namespace cadre::host_balance_test
