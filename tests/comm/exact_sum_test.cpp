// SPDX-License-Identifier: Apache-2.0
// Sums that are exact, and so the same in any order and over any number of ranks.
#include "comm/base/exact_sum.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace cadre::exact_sum_test {
namespace {

double sum_of(const std::vector<double>& values) {
  ExactSum sum;
  for (const double value : values) sum.add(value);
  return sum.value();
}

TEST(ExactSum, loses_nothing) {
  constexpr double kSmallest = std::numeric_limits<double>::denorm_min();
  constexpr double kLargest = std::numeric_limits<double>::max();
  EXPECT_EQ(sum_of({}), 0.0);
  EXPECT_EQ(sum_of({1e308, 1.0, -1e308}), 1.0);
  EXPECT_EQ(sum_of({kLargest, kSmallest, -kLargest}), kSmallest);
  EXPECT_EQ(sum_of({kLargest, kLargest, -kLargest, -1.0}), kLargest);
  EXPECT_EQ(sum_of({kLargest, kLargest}), std::numeric_limits<double>::infinity());
  EXPECT_EQ(sum_of({-3.0, 1.0, 0.5}), -1.5);
  EXPECT_EQ(sum_of({0x1p-1022, -0x1p-1074}), 0x1p-1022 - 0x1p-1074);
  for (int exponent = -1074; exponent < 1024; ++exponent) {
    const double power = std::ldexp(1.0, exponent);
    EXPECT_EQ(sum_of({power}), power) << exponent;
    EXPECT_EQ(sum_of({-power, 0.0}), -power) << exponent;
  }
}

// Halfway goes to the even neighbour, and the smallest bit beyond it decides.
TEST(ExactSum, is_rounded_once) {
  EXPECT_EQ(sum_of({1.0, 0x1p-53}), 1.0);
  EXPECT_EQ(sum_of({1.0, 0x1p-53, 0x1p-1074}), 1.0 + 0x1p-52);
  EXPECT_EQ(sum_of({1.0 + 0x1p-52, 0x1p-53}), 1.0 + 0x1p-51);
  EXPECT_EQ(sum_of({1.0 + 0x1p-52, 0x1p-53, -0x1p-300}), 1.0 + 0x1p-52);
  EXPECT_EQ(sum_of({-1.0, -0x1p-53, -0x1p-1074}), -1.0 - 0x1p-52);
}

TEST(ExactSum, does_not_depend_on_order_or_ranks) {
  std::mt19937_64 random(3);
  std::vector<double> values;
  std::normal_distribution<double> normal;
  for (int i = 0; i < 3000; ++i) values.push_back(std::ldexp(normal(random), static_cast<int>(random() % 80)));
  const double expected = sum_of(values);
  int differ = 0;
  for (const size_t ranks : {1, 2, 7}) {
    std::ranges::shuffle(values, random);
    double plain = 0.0;
    std::vector<ExactSum> of_ranks(ranks);
    for (size_t i = 0; i < values.size(); ++i) {
      of_ranks[i * i % ranks].add(values[i]);
      plain += values[i];
    }
    std::vector<int64_t> words = of_ranks.front().words();
    for (size_t rank = 1; rank < ranks; ++rank) {
      for (size_t i = 0; i < words.size(); ++i) words[i] += of_ranks[rank].words()[i];
    }
    EXPECT_EQ(ExactSum(words).value(), expected);
    differ += plain != expected ? 1 : 0;
  }
  EXPECT_GT(differ, 0) << "plain sums would do";
}

TEST(ExactSum, tells_what_is_not_finite) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  EXPECT_EQ(sum_of({1.0, kInfinite}), kInfinite);
  EXPECT_EQ(sum_of({-kInfinite, 5.0}), -kInfinite);
  EXPECT_TRUE(std::isnan(sum_of({kInfinite, -kInfinite})));
  EXPECT_TRUE(std::isnan(sum_of({1.0, std::nan("")})));
}

}  // namespace
}  // namespace cadre::exact_sum_test
