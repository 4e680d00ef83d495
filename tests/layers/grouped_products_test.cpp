// SPDX-License-Identifier: Apache-2.0
// One call for the products of several groups of rows, each with a weight of its own: every fast back end against single
// products of the reference, with groups that have no rows.
#include <gtest/gtest.h>

#include <deque>
#include <vector>

#include "tests/support/fast_kernels.hpp"

namespace cadre::grouped_products_test {
namespace {

using test::u;

constexpr int64_t kIn = 37;
constexpr int64_t kOut = 24;
constexpr int64_t kCounts[] = {5, 0, 17, 1, 130, 0};  // rows of each group
constexpr int64_t kRows = 153;

class GroupedProducts : public test::FastKernels {
 protected:
  void SetUp() override {
    FastKernels::SetUp();
    if (IsSkipped()) return;
    int64_t first = 0;
    for (const int64_t count : kCounts) {
      Parameter& weight = weights.emplace_back();
      weight.value = random({kOut, kIn});
      weight.grad = out({kOut, kIn});
      groups.push_back({first, count, &weight});
      first += count;
    }
    ASSERT_EQ(first, kRows);
  }

  // Sums of `terms` products of N(0, 1) numbers, in fp32 in any order: (terms + 1) u times the sum of their sizes.
  void expect_sums(const Tensor& actual, const Tensor& expected, int64_t terms) {
    expect_absolute(actual, expected, static_cast<double>(terms + 2) * u * 2.0 * static_cast<double>(terms + 2));
  }

  std::deque<Parameter> weights;
  std::vector<RowGroup> groups;
  Tensor x = random({kRows, kIn});
  Tensor dy = random({kRows, kOut});
};

TEST_P(GroupedProducts, AreProductsOfEachGroup) {
  const Tensor y[] = {out({kRows, kOut}), out({kRows, kOut})};
  const Tensor dx[] = {out({kRows, kIn}), out({kRows, kIn})};
  fast->grouped_linear(x, groups, y[0]);
  fast->grouped_linear_input_grad(dy, groups, dx[0]);
  for (const RowGroup& group : groups) {
    const auto of_group = [&](const Tensor& tensor) { return tensor.rows(group.first, group.count); };
    reference->linear(of_group(x), *group.weight, of_group(y[1]));
    reference->linear_input_grad(of_group(dy), *group.weight, of_group(dx[1]), Accumulate::no);
  }
  expect_sums(y[0], y[1], kIn);
  expect_sums(dx[0], dx[1], kOut);
}

TEST_P(GroupedProducts, GradientsOfEachWeight) {
  const Tensor expected = out({kOut, kIn});
  for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
    fast->grouped_linear_weight_grad(x, dy, groups, accumulate);
    const int times = accumulate == Accumulate::no ? 1 : 2;
    for (const RowGroup& group : groups) {
      SCOPED_TRACE(group.count);
      for (int i = 0; i < times; ++i) {
        reference->linear_weight_grad(x.rows(group.first, group.count), dy.rows(group.first, group.count), expected,
                                      i == 0 ? Accumulate::no : Accumulate::yes);
      }
      expect_sums(group.weight->grad, expected, 2 * group.count);
    }
  }
}

// What is frozen is not among the groups: its gradient stays.
TEST_P(GroupedProducts, OthersStayAsTheyAre) {
  weights[2].grad.fill_zero();
  const std::vector<RowGroup> some = {groups[0], groups[3], groups[4]};
  fast->grouped_linear_weight_grad(x, dy, some, Accumulate::no);
  fast->synchronize();
  EXPECT_EQ(test::values_of(weights[2].grad), std::vector<double>(kOut * kIn, 0.0));
  const Tensor expected = out({kOut, kIn});
  reference->linear_weight_grad(x.rows(groups[4].first, 130), dy.rows(groups[4].first, 130), expected, Accumulate::no);
  expect_sums(weights[4].grad, expected, 130);
}

TEST_P(GroupedProducts, NoRowsAtAll) {
  for (RowGroup& group : groups) group = {0, 0, group.weight};
  fast->grouped_linear(out({0, kIn}), groups, out({0, kOut}));
  fast->grouped_linear_input_grad(out({0, kOut}), groups, out({0, kIn}));
  fast->grouped_linear_weight_grad(out({0, kIn}), out({0, kOut}), groups, Accumulate::no);
  fast->synchronize();
  for (const Parameter& weight : weights) {
    EXPECT_EQ(test::values_of(weight.grad), std::vector<double>(kOut * kIn, 0.0));
  }
}

INSTANTIATE_TEST_SUITE_P(BackEnds, GroupedProducts, test::each_fast_back_end(), test::name_of_back_end);

}  // namespace
}  // namespace cadre::grouped_products_test
