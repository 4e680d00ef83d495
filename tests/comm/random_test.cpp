// SPDX-License-Identifier: Apache-2.0
#include "comm/base/random.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace cadre::random_test {
namespace {

TEST(Random, is_a_function_of_seed_purpose_id_and_index) {
  const Random random(1, "init", 7);
  EXPECT_EQ(random.bits(3), Random(1, "init", 7).bits(3));
  EXPECT_NE(random.bits(3), random.bits(4));
  EXPECT_NE(random.bits(3), Random(2, "init", 7).bits(3));
  EXPECT_NE(random.bits(3), Random(1, "data", 7).bits(3));
  EXPECT_EQ(random.block(3)[0], random.bits(3));
  EXPECT_NE(random.block(3)[1], random.bits(3));
  EXPECT_NE(random.block(3)[1], random.block(4)[1]);
  EXPECT_NE(random.bits(3), Random(1, "init", 8).bits(3));
}

TEST(Random, normal_has_mean_zero_and_variance_one) {
  const Random random(5, "test", 0);
  constexpr int kCount = 100000;
  double sum = 0.0;
  double sum_squares = 0.0;
  for (uint64_t i = 0; i < kCount; ++i) {
    sum += random.normal(i);
    sum_squares += random.normal(i) * random.normal(i);
  }
  // Five standard errors: 1 / sqrt(n) for the mean, sqrt(2 / n) for the variance.
  EXPECT_NEAR(sum / kCount, 0.0, 5.0 / std::sqrt(kCount));
  EXPECT_NEAR(sum_squares / kCount, 1.0, 5.0 * std::sqrt(2.0 / kCount));
}

TEST(Random, below_reaches_every_value_and_no_other) {
  const Random random(5, "test", 0);
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 1000; ++i) seen.insert(random.below(7, i));
  EXPECT_EQ(seen, (std::set<uint64_t>{0, 1, 2, 3, 4, 5, 6}));
}

}  // namespace
}  // namespace cadre::random_test
