// SPDX-License-Identifier: Apache-2.0
// Who watches whom: a pure function, so jobs of 4,096 ranks are checked in one process.
#include "comm/liveness/watch_graph.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <numeric>
#include <vector>

#include "comm/base/random.hpp"

namespace cadre::watch_graph_test {
namespace {

using Graph = std::vector<std::vector<int>>;

Graph graph_of(int num_ranks) {
  Graph graph;
  for (int rank = 0; rank < num_ranks; ++rank) graph.push_back(watch_neighbours(rank, num_ranks));
  return graph;
}

// How many ranks a search from the first living one reaches.
int reached(const Graph& graph, const std::vector<int>& dead, std::vector<int>& seen, int mark) {
  for (const int rank : dead) seen[static_cast<size_t>(rank)] = mark;
  std::vector<int> open;
  for (int rank = 0; open.empty(); ++rank) {
    if (seen[static_cast<size_t>(rank)] != mark) open.push_back(rank);
  }
  seen[static_cast<size_t>(open.front())] = mark;
  for (size_t next = 0; next < open.size(); ++next) {
    for (const int peer : graph[static_cast<size_t>(open[next])]) {
      if (seen[static_cast<size_t>(peer)] == mark) continue;
      seen[static_cast<size_t>(peer)] = mark;
      open.push_back(peer);
    }
  }
  return static_cast<int>(open.size());
}

TEST(WatchGraph, example_of_the_header) {
  EXPECT_EQ(watch_neighbours(0, 16), (std::vector<int>{1, 2, 4, 8, 12, 14, 15}));
  EXPECT_EQ(watch_neighbours(0, 1), std::vector<int>{});
  EXPECT_EQ(watch_neighbours(1, 3), (std::vector<int>{0, 2}));
}

TEST(WatchGraph, is_symmetric_and_logarithmic) {
  for (const int num_ranks : {1, 2, 3, 4, 5, 7, 12, 13, 64, 100, 1000, 4096}) {
    const Graph graph = graph_of(num_ranks);
    const int most = 2 * (std::bit_width(static_cast<unsigned>(num_ranks)) - 1) + 4;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const std::vector<int>& peers = graph[static_cast<size_t>(rank)];
      EXPECT_LE(static_cast<int>(peers.size()), most) << num_ranks;
      EXPECT_TRUE(std::ranges::is_sorted(peers));
      for (const int peer : peers) {
        ASSERT_NE(peer, rank);
        ASSERT_TRUE(std::ranges::binary_search(graph[static_cast<size_t>(peer)], rank)) << rank << " " << peer;
      }
    }
  }
}

TEST(WatchGraph, small_jobs_survive_all_deaths_but_one) {
  for (int num_ranks = 2; num_ranks <= 11; ++num_ranks) {
    EXPECT_EQ(static_cast<int>(watch_neighbours(0, num_ranks).size()), num_ranks - 1);
  }
}

// The graph looks the same from every rank and in both directions, so one of two dead ranks may be rank 0 and the other in
// the first half.
TEST(WatchGraph, any_one_or_two_deaths_leave_the_others_connected) {
  for (const int num_ranks : {13, 64, 100, 4096}) {
    const Graph graph = graph_of(num_ranks);
    std::vector<int> seen(graph.size(), 0);
    EXPECT_EQ(reached(graph, {0}, seen, 1), num_ranks - 1);
    for (int second = 1; second <= num_ranks / 2; ++second) {
      ASSERT_EQ(reached(graph, {0, second}, seen, second + 1), num_ranks - 2) << "0 and " << second << " die";
    }
  }
}

TEST(WatchGraph, a_thousand_random_sets_of_eight_deaths_leave_the_others_connected) {
  constexpr int kRanks = 4096;
  constexpr int kDead = 8;
  const Graph graph = graph_of(kRanks);
  std::vector<int> seen(graph.size(), 0);
  for (int trial = 1; trial <= 1000; ++trial) {
    const Random random(7, "dead ranks", static_cast<uint64_t>(trial));
    std::vector<int> dead;
    for (uint64_t index = 0; dead.size() < kDead; ++index) {
      const auto rank = static_cast<int>(random.below(kRanks, index));
      if (std::ranges::find(dead, rank) == dead.end()) dead.push_back(rank);
    }
    ASSERT_EQ(reached(graph, dead, seen, trial), kRanks - kDead) << trial;
  }
}

}  // namespace
}  // namespace cadre::watch_graph_test
