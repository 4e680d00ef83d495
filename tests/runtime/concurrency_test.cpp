// SPDX-License-Identifier: Apache-2.0
// How much is under way at once, against programs whose ops can be counted by hand.
#include <gtest/gtest.h>

#include "runtime/schedule/generators.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/verify.hpp"

namespace cadre::concurrency_test {
namespace {

// 1F1B of 4 rows: row r has 4 - r micro-batches under way, and one pass at a time.
TEST(Concurrency, of_one_forward_one_backward) {
  const std::vector<Concurrency> rows = concurrency_of(make_program("1f1b", 4, 8), /*recomputes=*/true);
  ASSERT_EQ(rows.size(), 4U);
  for (int row = 0; row < 4; ++row) {
    const Concurrency& one = rows[static_cast<size_t>(row)];
    EXPECT_EQ(one.lanes, 4 - row);
    EXPECT_EQ(one.works, 1);
    EXPECT_EQ(one.passes, 1);
    EXPECT_FALSE(one.defers);
  }
  EXPECT_EQ(most_lanes(rows), 4);
}

// A forward beside a backward pass, and before it the backward pass whose weight gradients wait.
TEST(Concurrency, of_pairs) {
  Program program = make_program("pair", 1, 6);
  EXPECT_EQ(concurrency_of(program, false)[0].works, 2);
  EXPECT_EQ(concurrency_of(program, true)[0].works, 3);
  EXPECT_EQ(concurrency_of(program, true)[0].passes, 2);
  EXPECT_TRUE(concurrency_of(program, true)[0].defers);
  const int lanes = concurrency_of(program, false)[0].lanes;
  program.num_postponed = 3;
  EXPECT_EQ(concurrency_of(program, false)[0].works, 4);
  EXPECT_EQ(concurrency_of(program, true)[0].works, 5);
  EXPECT_EQ(concurrency_of(program, false)[0].lanes, lanes + 2);
  EXPECT_EQ(concurrency_of(make_program("pair", 1, 8, /*ramp=*/4), true)[0].passes, 4);
}

// F0 F1 B0 F2 B1 W0 B2 W1 W2: two backward passes are between their input and their weight gradients.
TEST(Concurrency, of_split_backward_passes) {
  Program program = make_program("1f1b", 1, 3);
  program.ops[0] = {};
  const auto add = [&](OpKind kind, int micro_batch) {
    program.ops[0].push_back({.kind = kind, .chunk = {0, micro_batch}});
  };
  add(OpKind::forward, 0), add(OpKind::forward, 1), add(OpKind::backward_input, 0), add(OpKind::forward, 2);
  add(OpKind::backward_input, 1), add(OpKind::backward_weight, 0), add(OpKind::backward_input, 2);
  add(OpKind::backward_weight, 1), add(OpKind::backward_weight, 2);
  EXPECT_EQ(concurrency_of(program, false)[0].works, 2);
  EXPECT_EQ(concurrency_of(program, true)[0].works, 2) << "F2 beside B0";
  EXPECT_EQ(concurrency_of(program, true)[0].passes, 1);
  EXPECT_TRUE(concurrency_of(program, true)[0].defers);
}

}  // namespace
}  // namespace cadre::concurrency_test
