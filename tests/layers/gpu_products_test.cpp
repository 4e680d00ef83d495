// SPDX-License-Identifier: Apache-2.0
// What the GPU back end makes of the operands of a product in each precision, against the CPU back end. The twin adds up
// in fp64 what cuBLASLt does on a device.
#include <gtest/gtest.h>

#include <vector>

#include "layers/kernels/kernels.hpp"
#include "tests/support/gpu_twin.hpp"
#include "tests/support/tensors.hpp"

namespace cadre {
namespace {

constexpr int64_t kRows = 150;  // more than one tile along each axis, none full at the edge
constexpr int64_t kIn = 300;
constexpr int64_t kOut = 170;

class GpuProducts : public testing::TestWithParam<Precision> {
 protected:
  GpuProducts() {
    weight.value = random({kOut, kIn});
    x = random({kRows, kIn});
    dy = random({kRows, kOut});
  }
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena, DType::f32, shape, next_id++);
  }

  // Both round operands to the same numbers. Sums of `terms` products of N(0, 1) numbers in fp32, in any order: (terms + 2)
  // u times the sum of their sizes, which is below 2 (terms + 2); code x scale rounds each product once more.
  void expect_equal(const Tensor (&sides)[2], int64_t terms) {
    const double bound = 0x1p-24 * static_cast<double>(terms + 4) * 2.0 * static_cast<double>(terms + 2);
    test::expect_near(test::values_of(sides[0]), test::values_of(sides[1]), bound);
  }

  std::unique_ptr<Kernels> twin =
      test::make_gpu_twin(test::TwinOrder::descending, test::TwinMemory::copied, GetParam());
  std::unique_ptr<Kernels> cpu = make_cpu_kernels(GetParam());
  Arena arena{Arena::Mode::real, /*poison=*/true};
  uint64_t next_id = 0;
  Parameter weight;
  Tensor x, dy;
};

TEST_P(GpuProducts, AreThoseOfTheCpu) {
  const Kernels* const kernels[] = {twin.get(), cpu.get()};
  const Tensor y[] = {arena.take("y", DType::f32, {kRows, kOut}), arena.take("y", DType::f32, {kRows, kOut})};
  const Tensor dx[] = {arena.take("dx", DType::f32, {kRows, kIn}), arena.take("dx", DType::f32, {kRows, kIn})};
  const Tensor dw[] = {arena.take("dw", DType::f32, {kOut, kIn}), arena.take("dw", DType::f32, {kOut, kIn})};
  for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
    for (const int side : {0, 1}) {
      kernels[side]->linear(x, weight, y[side]);
      kernels[side]->linear_input_grad(dy, weight, dx[side], accumulate);
      kernels[side]->linear_weight_grad(x, dy, dw[side], accumulate);
    }
    expect_equal(y, kIn);
    expect_equal(dx, 2 * kOut);
    expect_equal(dw, 2 * kRows);
  }
}

// With operands as each product alone rounds them, and so with the same bits.
TEST_P(GpuProducts, OfGroupsAreThoseOfEach) {
  Parameter weights[2];
  for (Parameter& one : weights) {
    one.value = random({kOut, kIn});
    one.grad = arena.take("dw", DType::f32, {kOut, kIn});
  }
  const std::vector<RowGroup> groups = {{0, 9, &weights[0]}, {9, kRows - 9, &weights[1]}};
  const Tensor y[] = {arena.take("y", DType::f32, {kRows, kOut}), arena.take("y", DType::f32, {kRows, kOut})};
  const Tensor dx[] = {arena.take("dx", DType::f32, {kRows, kIn}), arena.take("dx", DType::f32, {kRows, kIn})};
  const Tensor dw = arena.take("dw", DType::f32, {kOut, kIn});
  twin->grouped_linear(x, groups, y[0]);
  twin->grouped_linear_input_grad(dy, groups, dx[0]);
  twin->grouped_linear_weight_grad(x, dy, groups, Accumulate::no);
  for (const auto& [first, count, one] : groups) {
    twin->linear(x.rows(first, count), *one, y[1].rows(first, count));
    twin->linear_input_grad(dy.rows(first, count), *one, dx[1].rows(first, count), Accumulate::no);
    twin->linear_weight_grad(x.rows(first, count), dy.rows(first, count), dw, Accumulate::no);
    EXPECT_EQ(test::values_of(one->grad), test::values_of(dw));
  }
  EXPECT_EQ(test::values_of(y[0]), test::values_of(y[1]));
  EXPECT_EQ(test::values_of(dx[0]), test::values_of(dx[1]));
}

TEST_P(GpuProducts, SeeThatTheWeightMovedOn) {
  const Tensor y[] = {arena.take("y", DType::f32, {kRows, kOut}), arena.take("y", DType::f32, {kRows, kOut})};
  twin->linear(x, weight, y[0]);
  const std::vector<double> before = test::values_of(y[0]);
  test::fill_random(weight.value, 99);
  ++weight.version;
  twin->linear(x, weight, y[0]);
  cpu->linear(x, weight, y[1]);
  EXPECT_NE(test::values_of(y[0]), before);
  expect_equal(y, kIn);
}

TEST_P(GpuProducts, ExactProductsStayExact) {
  const Tensor y[] = {arena.take("y", DType::f32, {kRows, kOut}), arena.take("y", DType::f32, {kRows, kOut})};
  twin->linear(x, weight, y[0]);
  const std::vector<double> in_precision = test::values_of(y[0]);
  twin->fp32().linear(x, weight, y[0]);
  cpu->fp32().linear(x, weight, y[1]);
  expect_equal(y, kIn);
  EXPECT_EQ(test::values_of(y[0]) == in_precision, GetParam() == Precision::fp32);
  twin->linear(x, weight, y[0]);
  EXPECT_EQ(test::values_of(y[0]), in_precision);
}

TEST_P(GpuProducts, NoRows) {
  const Tensor none = arena.take("none", DType::f32, {0, kIn});
  const Tensor no_grads = arena.take("none", DType::f32, {0, kOut});
  const Tensor dw = random({kOut, kIn});
  const std::vector<double> before = test::values_of(dw);
  twin->linear(none, weight, no_grads);
  twin->linear_input_grad(no_grads, weight, none, Accumulate::no);
  twin->linear_weight_grad(none, no_grads, dw, Accumulate::yes);
  EXPECT_EQ(test::values_of(dw), before);
  twin->linear_weight_grad(none, no_grads, dw, Accumulate::no);
  EXPECT_EQ(test::values_of(dw), std::vector<double>(kOut * kIn, 0.0));
}

INSTANTIATE_TEST_SUITE_P(Precisions, GpuProducts,
                         testing::Values(Precision::fp32, Precision::bf16, Precision::fp8, Precision::fp8_ue8m0));

}  // namespace
}  // namespace cadre
