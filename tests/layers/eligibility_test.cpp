// SPDX-License-Identifier: Apache-2.0
// Group-limited routing against values worked out by hand.
#include "layers/router/eligibility.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace cadre::eligibility_test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<double> limited(const GroupLimit& limit, std::vector<double> choice) {
  limit_to_groups(limit, Tensor(choice.data(), DType::f64, {1, static_cast<int64_t>(choice.size())}));
  return choice;
}

TEST(Eligibility, best_score_and_sum_of_best_two_differ) {
  const std::vector<double> scores = {0.9, 0.1, 0.6, 0.5, 0.2, 0.3};  // groups of two: best .9 .6 .3, sums 1.0 1.1 .5
  EXPECT_EQ(limited({3, 1, 1}, scores), (std::vector{0.9, 0.1, -kInf, -kInf, -kInf, -kInf}));
  EXPECT_EQ(limited({3, 1, 2}, scores), (std::vector{-kInf, -kInf, 0.6, 0.5, -kInf, -kInf}));
  EXPECT_EQ(limited({3, 2, 1}, scores), (std::vector{0.9, 0.1, 0.6, 0.5, -kInf, -kInf}));
}

// An expert of a group that is out must not come back at 0, above what a negative bias left.
TEST(Eligibility, what_is_out_is_out) {
  EXPECT_EQ(limited({2, 1, 2}, {-0.5, -0.5, -1.25, -1.25}), (std::vector{-0.5, -0.5, -kInf, -kInf}));
}

TEST(Eligibility, ties_go_to_the_lower_group_and_groups_of_one_are_their_expert) {
  EXPECT_EQ(limited({2, 1, 1}, {0.5, 0.25, 0.5, 0.25}), (std::vector{0.5, 0.25, -kInf, -kInf}));
  EXPECT_EQ(limited({3, 2, 2}, {0.1, 0.3, 0.2}), (std::vector{-kInf, 0.3, 0.2}));
}

TEST(Eligibility, a_nan_is_not_hidden) {
  const auto eligible = limited({2, 1, 1}, {0.5, 0.25, std::nan(""), 0.1});
  EXPECT_TRUE(std::isnan(eligible[2]));
}

// Sequences of three; the first of these tokens is the second of one.
TEST(Eligibility, conditions_count_positions_in_their_sequence_and_tasks_by_number) {
  std::vector<int32_t> tasks = {2, 1, 2, -1};
  TokenFacts tokens = {.first = 4, .sequence_length = 3};
  tokens.task = Tensor(tasks.data(), DType::i32, {4});
  std::vector<double> choice(4 * 4, 0.5);
  limit_to_conditions({{0, ExpertCondition::Kind::position_below, 2},
                       {1, ExpertCondition::Kind::position_from, 2},
                       {2, ExpertCondition::Kind::task, 2}},
                      tokens, Tensor(choice.data(), DType::f64, {4, 4}));
  EXPECT_EQ(choice, (std::vector{0.5, -kInf, 0.5, 0.5,       // position 1, task 2
                                 -kInf, 0.5, -kInf, 0.5,     // 2, 1
                                 0.5, -kInf, 0.5, 0.5,       // 0, 2
                                 0.5, -kInf, -kInf, 0.5}));  // 1, none
}

}  // namespace
}  // namespace cadre::eligibility_test
