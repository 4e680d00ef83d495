// SPDX-License-Identifier: Apache-2.0
// Group-limited routing against values worked out by hand.
#include "layers/moe/groups.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace cadre {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<double> limited(const GroupLimit& limit, std::vector<double> scores, std::vector<double> bias = {}) {
  const auto num_experts = static_cast<int64_t>(scores.size());
  std::vector<double> eligible(scores.size(), std::nan(""));
  limit_to_groups(limit, Tensor(scores.data(), DType::f64, {1, num_experts}),
                  bias.empty() ? Tensor() : Tensor(bias.data(), DType::f64, {num_experts}),
                  Tensor(eligible.data(), DType::f64, {1, num_experts}));
  return eligible;
}

TEST(Groups, best_score_and_sum_of_best_two_differ) {
  const std::vector<double> scores = {0.9, 0.1, 0.6, 0.5, 0.2, 0.3};  // groups of two: best .9 .6 .3, sums 1.0 1.1 .5
  EXPECT_EQ(limited({3, 1, GroupScore::best}, scores), (std::vector{0.9, 0.1, -kInf, -kInf, -kInf, -kInf}));
  EXPECT_EQ(limited({3, 1, GroupScore::sum_of_best_two}, scores), (std::vector{-kInf, -kInf, 0.6, 0.5, -kInf, -kInf}));
  EXPECT_EQ(limited({3, 2, GroupScore::best}, scores), (std::vector{0.9, 0.1, 0.6, 0.5, -kInf, -kInf}));
}

// With a negative bias an expert of a group that is out must not come back at 0.
TEST(Groups, a_bias_decides_and_what_is_out_is_out) {
  const auto eligible = limited({2, 1, GroupScore::sum_of_best_two}, {0.5, 0.5, 0.75, 0.75}, {-1.0, -1.0, -2.0, -2.0});
  EXPECT_EQ(eligible, (std::vector{-0.5, -0.5, -kInf, -kInf}));
}

TEST(Groups, ties_go_to_the_lower_group_and_groups_of_one_are_their_expert) {
  EXPECT_EQ(limited({2, 1, GroupScore::best}, {0.5, 0.25, 0.5, 0.25}), (std::vector{0.5, 0.25, -kInf, -kInf}));
  EXPECT_EQ(limited({3, 2, GroupScore::sum_of_best_two}, {0.1, 0.3, 0.2}), (std::vector{-kInf, 0.3, 0.2}));
}

TEST(Groups, a_nan_is_not_hidden) {
  const auto eligible = limited({2, 1, GroupScore::best}, {0.5, 0.25, std::nan(""), 0.1});
  EXPECT_TRUE(std::isnan(eligible[2]));
}

}  // namespace
}  // namespace cadre
