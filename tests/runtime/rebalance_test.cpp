// SPDX-License-Identifier: Apache-2.0
// Where and when experts should move: means of loads, maps that keep the number of experts of each rank, and what pays.
#include "runtime/placement/rebalance.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace cadre::rebalance_test {
namespace {

TEST(Rebalance, loads_are_means_and_then_moving_means) {
  LoadMean mean;
  mean.add({{4, 0}});
  mean.add({{0, 2}});
  EXPECT_EQ(mean.of_layers(), (std::vector<std::vector<double>>{{2, 1}}));
  for (int64_t step = 2; step < kLoadWindow; ++step) mean.add({{2, 1}});
  mean.add({{18, 1}});  // 2 + 16 / 16
  EXPECT_EQ(mean.steps(), kLoadWindow + 1);
  EXPECT_DOUBLE_EQ(mean.of_layers()[0][0], 3.0);
  EXPECT_DOUBLE_EQ(mean.of_layers()[0][1], 1.0);
}

TEST(Rebalance, swaps_what_evens_the_ranks_out) {
  const ExpertMap before = ExpertMap::contiguous(4, 2);
  const std::vector<double> weight = {8, 6, 1, 1};
  const ExpertMap after = place_anew(before, weight, 1, 1);
  // 8 + 1 against 6 + 1 is the best there is; one expert of each rank moves.
  EXPECT_DOUBLE_EQ(busiest_over_mean({before}, {weight}), 14.0 / 8.0);
  EXPECT_DOUBLE_EQ(busiest_over_mean({after}, {weight}), 9.0 / 8.0);
  EXPECT_EQ(arrivals(before, after), (std::vector<int>{1, 1}));
  EXPECT_EQ(place_anew(after, weight, 1, 1), after);
  // Layers wait for each other: (14 + 8) / (8 + 8).
  EXPECT_DOUBLE_EQ(busiest_over_mean({before, before}, {weight, {4, 4, 4, 4}}), 22.0 / 16.0);
}

// The busiest rank never gets busier, each rank keeps its number of experts, each expert has a rank.
TEST(Rebalance, keeps_the_number_of_experts_of_each_rank) {
  std::mt19937 random(7);
  for (int round = 0; round < 60; ++round) {
    const int num_ranks = 2 + round % 4;
    const int num_experts = num_ranks + static_cast<int>(random() % 12);
    std::vector<std::vector<int>> experts_of(static_cast<size_t>(num_ranks));
    const ExpertMap in_a_row = ExpertMap::contiguous(num_experts, num_ranks);
    for (int rank = 0; rank < num_ranks; ++rank) {
      const auto own = in_a_row.experts_of(rank);
      experts_of[static_cast<size_t>(rank)].assign(own.begin(), own.end());
      // The ranks behind have fewer: a copy each makes sizes uneven in another order.
      const bool more = round % 2 == 1 && static_cast<int>(own.size()) == num_experts / num_ranks;
      const int copy = in_a_row.experts_of((rank + 1) % num_ranks)[0];
      if (more) experts_of[static_cast<size_t>(rank)].push_back(copy);
    }
    const ExpertMap before = ExpertMap::of(num_experts, experts_of);
    if (!has_even_slots(before)) continue;
    std::vector<double> weight;
    for (int e = 0; e < num_experts; ++e) weight.push_back(1000.0 / static_cast<double>(1 + random() % 50));
    const ExpertMap after = place_anew(before, weight, 1, 1);
    for (int rank = 0; rank < num_ranks; ++rank) {
      EXPECT_EQ(after.experts_of(rank).size(), before.experts_of(rank).size()) << "round " << round;
    }
    EXPECT_EQ(after.num_replicas(), before.num_replicas());
    EXPECT_LE(busiest_over_mean({after}, {weight}), busiest_over_mean({before}, {weight}) * (1 + 1e-12));
  }
  EXPECT_FALSE(has_even_slots(ExpertMap::of(4, {{0, 1, 2}, {3}})));
  EXPECT_TRUE(has_even_slots(ExpertMap::of(5, {{0, 1}, {2, 3, 4}})));
}

// Three layers of two ranks with four experts, of which a swap moves one to each rank.
TEST(Rebalance, moves_the_layers_that_gain_most_first) {
  const ExpertMap before = ExpertMap::contiguous(4, 2);
  const ExpertMap after = ExpertMap::of(4, {{0, 2}, {1, 3}});
  const std::vector<std::vector<double>> weight = {{2, 2, 1, 1}, {8, 8, 1, 1}, {4, 4, 1, 1}};
  const auto moved = [&](int64_t most) {
    std::vector<bool> layers;
    for (const ExpertMap& map : within_arrivals({before, before, before}, {after, after, after}, weight, most)) {
      layers.push_back(map == after);
    }
    return layers;
  };
  EXPECT_EQ(moved(0), (std::vector<bool>{false, true, false}));
  EXPECT_EQ(moved(2), (std::vector<bool>{false, true, true}));
  EXPECT_EQ(moved(3), (std::vector<bool>{true, true, true}));
  // A layer that stays takes nothing of what may arrive.
  EXPECT_EQ(within_arrivals({before, before}, {before, after}, {{9, 9, 1, 1}, {2, 2, 1, 1}}, 1),
            (std::vector<ExpertMap>{before, after}));
}

// Experts take 60 % of an even step of 100 ms. The busiest rank has 1.5 of the mean: 40 + 60 * 1.5 = 130 ms.
TEST(Rebalance, a_move_pays_where_it_saves_more_than_it_takes) {
  MoveEstimate move = {
      .step_ms = 130.0, .expert_share = 0.6, .before = 1.5, .after = 1.1, .copy_ms = 95.0, .horizon = 4};
  EXPECT_NEAR(move.gain_ms(), 24.0, 1e-9);  // 130 - (40 + 66)
  EXPECT_TRUE(move.pays());                 // 4 * 24 = 96
  move.copy_ms = 97.0;
  EXPECT_FALSE(move.pays());
  move.copy_ms = 0.0;
  EXPECT_TRUE(move.pays());
  move.after = 1.5;
  EXPECT_FALSE(move.pays());
}

// What travels behind a step costs a quarter of its time, or what is longer than the step.
TEST(Rebalance, a_transfer_costs_what_no_step_hides) {
  MoveEstimate move = {.step_ms = 130.0, .copy_ms = 3.0, .transfer_ms = 100.0};
  EXPECT_DOUBLE_EQ(move.cost_ms(), 28.0);
  move.transfer_ms = 230.0;
  EXPECT_DOUBLE_EQ(move.cost_ms(), 103.0);
  move.cost_factor = 0.5;
  EXPECT_DOUBLE_EQ(move.cost_ms(), 51.5);
  EXPECT_DOUBLE_EQ(move.plain_cost_ms(), 103.0);
  move = {.step_ms = 130.0, .expert_share = 0.6, .before = 1.5, .after = 1.1, .gain_factor = 0.25};
  EXPECT_NEAR(move.gain_ms(), 6.0, 1e-9);
  EXPECT_NEAR(move.plain_gain_ms(), 24.0, 1e-9);
}

TEST(Rebalance, estimates_follow_what_moves_took_and_brought) {
  MoveHistory history;
  EXPECT_EQ(history.cost_factor(), 1.0);
  history.add_cost(/*expected_ms=*/5.0, /*took_ms=*/15.0, /*step_ms=*/100.0);
  EXPECT_DOUBLE_EQ(history.cost_factor(), 2.0);  // (5 + 15) / (5 + 5)
  history.add_cost(6.25, 18.75, 100.0);
  EXPECT_DOUBLE_EQ(history.cost_factor(), 35.0 / 15.0);  // (5 + 0.75 * 15 + 18.75) / (5 + 0.75 * 5 + 6.25)
  EXPECT_EQ(history.gain_factor(), 1.0);
  history.add_gain(20.0, 10.0, 100.0);
  EXPECT_DOUBLE_EQ(history.gain_factor(), 0.6);
  // What chance adds to a move that promised little is little.
  history.add_gain(0.1, 2.0, 100.0);
  EXPECT_NEAR(history.gain_factor(), 14.5 / 20.1, 1e-12);
  for (int move = 0; move < 20; ++move) history.add_gain(10.0, -50.0, 100.0);
  EXPECT_DOUBLE_EQ(history.gain_factor(), 1.0 / 8.0);
}

std::vector<int> looks(RebalanceClock clock, int steps, int move_at) {
  std::vector<int> found;
  for (int step = 1; step <= steps; ++step) {
    if (!clock.tick()) continue;
    found.push_back(step);
    step == move_at ? clock.has_moved() : clock.has_looked();
  }
  return found;
}

TEST(Rebalance, looks_ever_less_often_until_something_moved) {
  EXPECT_EQ(looks(RebalanceClock(5), 16, 10), (std::vector<int>{5, 10, 15}));
  EXPECT_EQ(looks(RebalanceClock(-1), 45, 0), (std::vector<int>{4, 12, 28}));
  EXPECT_EQ(looks(RebalanceClock(-1), 45, 12), (std::vector<int>{4, 12, 16, 24, 40}));
  RebalanceClock clock(-1);
  for (int step = 0; step < 12; ++step) {
    if (clock.tick()) clock.has_looked();
  }
  EXPECT_EQ(clock.horizon(), 12);
  EXPECT_EQ(RebalanceClock(5).horizon(), 5);
}

}  // namespace
}  // namespace cadre::rebalance_test
