// SPDX-License-Identifier: Apache-2.0
// What the GPU back end makes of the operands of a product in each precision, against the CPU back end. The twin adds up
// in fp64 what cuBLASLt does on a device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "comm/wire/fp8.hpp"
#include "layers/kernels/kernels.hpp"
#include "tests/support/fast_back_ends.hpp"
#include "tests/support/gpu_twin.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::gpu_products_test {
namespace {

struct Shape {
  int64_t rows, in, out;
};
// More than one tile along each axis, none full at the edge; and all of them as a machine that multiplies fp8 takes them.
constexpr Shape kShapes[] = {{150, 300, 170}, {48, 272, 144}};

struct Case {
  const char* name;
  Precision precision;
  test::TwinFp8 fp8 = test::TwinFp8::rounded;
};
constexpr Case kCases[] = {
    {"Fp32", Precision::fp32},
    {"Bf16", Precision::bf16},
    {"Fp8Rounded", Precision::fp8},
    {"Fp8Ue8m0Rounded", Precision::fp8_ue8m0},
    {"Fp8", Precision::fp8, test::TwinFp8::multiplied},
    {"Fp8Ue8m0", Precision::fp8_ue8m0, test::TwinFp8::multiplied},
};

class GpuProducts : public testing::TestWithParam<std::tuple<Case, Shape>> {
 protected:
  GpuProducts() {
    weight.value = random({out, in});
    x = random({rows, in});
    dy = random({rows, out});
  }
  Tensor random(std::initializer_list<int64_t> shape) {
    return test::random_tensor(arena, DType::f32, shape, next_id++);
  }

  // Both round operands to the same numbers. Sums of `terms` products of N(0, 1) numbers in fp32, in any order: (terms + 2)
  // u times the sum of their sizes, which is below 2 (terms + 2); code x scale rounds each product once more, and so do
  // both scales of a sum of code products.
  void expect_equal(const Tensor (&sides)[2], int64_t terms) {
    const double bound = 0x1p-24 * static_cast<double>(terms + 4) * 2.0 * static_cast<double>(terms + 2);
    test::expect_near(test::values_of(sides[0]), test::values_of(sides[1]), bound);
  }

  const Case& of() const { return std::get<Case>(GetParam()); }

  const int64_t rows = std::get<Shape>(GetParam()).rows;
  const int64_t in = std::get<Shape>(GetParam()).in;
  const int64_t out = std::get<Shape>(GetParam()).out;
  std::unique_ptr<Kernels> twin =
      test::make_gpu_twin(test::TwinOrder::descending, test::TwinMemory::copied, of().precision, of().fp8);
  std::unique_ptr<Kernels> cpu = make_cpu_kernels(of().precision);
  Arena arena{Arena::Mode::real, /*poison=*/true};
  uint64_t next_id = 0;
  Parameter weight;
  Tensor x, dy;
};

TEST_P(GpuProducts, AreThoseOfTheCpu) {
  const Kernels* const kernels[] = {twin.get(), cpu.get()};
  const Tensor y[] = {arena.take("y", DType::f32, {rows, out}), arena.take("y", DType::f32, {rows, out})};
  const Tensor dx[] = {arena.take("dx", DType::f32, {rows, in}), arena.take("dx", DType::f32, {rows, in})};
  const Tensor dw[] = {arena.take("dw", DType::f32, {out, in}), arena.take("dw", DType::f32, {out, in})};
  for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
    for (const int side : {0, 1}) {
      kernels[side]->linear(x, weight, y[side]);
      kernels[side]->linear_input_grad(dy, weight, dx[side], accumulate);
      kernels[side]->linear_weight_grad(x, dy, dw[side], accumulate);
    }
    expect_equal(y, in);
    expect_equal(dx, 2 * out);
    expect_equal(dw, 2 * rows);
  }
}

// With operands as each product alone rounds them, and so with the same bits. One group has no rows.
TEST_P(GpuProducts, OfGroupsAreThoseOfEach) {
  Parameter weights[4];
  for (Parameter& one : weights) {
    one.value = random({out, in});
    one.grad = arena.take("dw", DType::f32, {out, in});
  }
  const std::vector<RowGroup> groups = {
      {0, 9, &weights[0]}, {9, 0, &weights[1]}, {9, rows - 25, &weights[2]}, {rows - 16, 16, &weights[3]}};
  const Tensor y[] = {arena.take("y", DType::f32, {rows, out}), arena.take("y", DType::f32, {rows, out})};
  const Tensor dx[] = {arena.take("dx", DType::f32, {rows, in}), arena.take("dx", DType::f32, {rows, in})};
  const Tensor dw = arena.take("dw", DType::f32, {out, in});
  twin->grouped_linear(x, groups, y[0]);
  twin->grouped_linear_input_grad(dy, groups, dx[0]);
  twin->grouped_linear_weight_grad(x, dy, groups, Accumulate::no);
  twin->grouped_linear_weight_grad(x, dy, groups, Accumulate::yes);
  for (const auto& [first, count, one] : groups) {
    twin->linear(x.rows(first, count), *one, y[1].rows(first, count));
    twin->linear_input_grad(dy.rows(first, count), *one, dx[1].rows(first, count), Accumulate::no);
    twin->linear_weight_grad(x.rows(first, count), dy.rows(first, count), dw, Accumulate::no);
    twin->linear_weight_grad(x.rows(first, count), dy.rows(first, count), dw, Accumulate::yes);
    EXPECT_EQ(test::values_of(one->grad), test::values_of(dw));
  }
  EXPECT_EQ(test::values_of(y[0]), test::values_of(y[1]));
  EXPECT_EQ(test::values_of(dx[0]), test::values_of(dx[1]));
}

TEST_P(GpuProducts, SeeThatTheWeightMovedOn) {
  const Tensor y[] = {arena.take("y", DType::f32, {rows, out}), arena.take("y", DType::f32, {rows, out})};
  twin->linear(x, weight, y[0]);
  const std::vector<double> before = test::values_of(y[0]);
  test::fill_random(weight.value, 99);
  ++weight.version;
  twin->linear(x, weight, y[0]);
  cpu->linear(x, weight, y[1]);
  EXPECT_NE(test::values_of(y[0]), before);
  expect_equal(y, in);
}

TEST_P(GpuProducts, ExactProductsStayExact) {
  const Tensor y[] = {arena.take("y", DType::f32, {rows, out}), arena.take("y", DType::f32, {rows, out})};
  twin->linear(x, weight, y[0]);
  const std::vector<double> in_precision = test::values_of(y[0]);
  twin->fp32().linear(x, weight, y[0]);
  cpu->fp32().linear(x, weight, y[1]);
  expect_equal(y, in);
  EXPECT_EQ(test::values_of(y[0]) == in_precision, of().precision == Precision::fp32);
  twin->linear(x, weight, y[0]);
  EXPECT_EQ(test::values_of(y[0]), in_precision);
}

TEST_P(GpuProducts, NoRows) {
  const Tensor none = arena.take("none", DType::f32, {0, in});
  const Tensor no_grads = arena.take("none", DType::f32, {0, out});
  const Tensor dw = random({out, in});
  const std::vector<double> before = test::values_of(dw);
  twin->linear(none, weight, no_grads);
  twin->linear_input_grad(no_grads, weight, none, Accumulate::no);
  twin->linear_weight_grad(none, no_grads, dw, Accumulate::yes);
  EXPECT_EQ(test::values_of(dw), before);
  twin->linear_weight_grad(none, no_grads, dw, Accumulate::no);
  EXPECT_EQ(test::values_of(dw), std::vector<double>(static_cast<size_t>(out * in), 0.0));
}

std::string name_of(const testing::TestParamInfo<std::tuple<Case, Shape>>& info) {
  return std::string(std::get<Case>(info.param).name) + "Of" + std::to_string(std::get<Shape>(info.param).rows);
}
INSTANTIATE_TEST_SUITE_P(Precisions, GpuProducts,
                         testing::Combine(testing::ValuesIn(kCases), testing::ValuesIn(kShapes)), name_of);

// On a device; the twin has shown what it is told. Tensor cores that multiply fp8 add products with about 14 bits
// (DeepSeek-V3, arXiv 2412.19437, section 3.3.2): each addition loses less than 2^-13 of the largest product.
class Fp8OnDevice : public testing::TestWithParam<Precision> {};

// N(0, 1), and twice that from tile to tile, so that a scale of another tile shows.
Tensor random_steps(Arena& arena, int64_t rows, int64_t width, uint64_t seed) {
  const Tensor tensor = test::random_tensor(arena, DType::f32, {rows, width}, seed);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    tensor.data<float>()[i] *= static_cast<float>(1 << (i / width / kFp8TileChannels + i % width / kFp8TileChannels));
  }
  return tensor;
}

double largest(const Tensor& tensor) {
  double found = 0.0;
  for (const double value : test::values_of(tensor)) found = std::max(found, std::abs(value));
  return found;
}

TEST_P(Fp8OnDevice, IsThatOfTheCpu) {
  const std::unique_ptr<Kernels> device = find_cuda_devices().list.empty() ? nullptr : make_cuda_kernels(0, GetParam());
  CADRE_SKIP_WITHOUT(device);
  const std::unique_ptr<Kernels> cpu = make_cpu_kernels(GetParam());
  for (const auto& [rows, in, out] : kShapes) {
    Arena arena(Arena::Mode::real, /*poison=*/true);
    Parameter weight;
    weight.value = random_steps(arena, out, in, 1);
    const Tensor x = random_steps(arena, rows, in, 2);
    const Tensor dy = random_steps(arena, rows, out, 3);
    const Tensor y[] = {arena.take("y", DType::f32, {rows, out}), arena.take("y", DType::f32, {rows, out})};
    const Tensor dx[] = {arena.take("dx", DType::f32, {rows, in}), arena.take("dx", DType::f32, {rows, in})};
    const Tensor dw[] = {arena.take("dw", DType::f32, {out, in}), arena.take("dw", DType::f32, {out, in})};
    for (const int side : {0, 1}) {
      const Kernels& kernels = side == 0 ? *device : *cpu;
      kernels.linear(x, weight, y[side]);
      kernels.linear_input_grad(dy, weight, dx[side], Accumulate::no);
      kernels.linear_weight_grad(x, dy, dw[side], Accumulate::no);
      kernels.synchronize();
    }
    const auto expect_near = [](const Tensor(&sides)[2], int64_t terms, const Tensor& a, const Tensor& b) {
      const double bound = 0x1p-13 * static_cast<double>(terms) * largest(a) * largest(b);
      test::expect_near(test::values_of(sides[0]), test::values_of(sides[1]), bound);
    };
    expect_near(y, in, x, weight.value);
    expect_near(dx, out, dy, weight.value);
    expect_near(dw, rows, x, dy);
  }
}

// Groups whose rows are no whole tiles, one without rows, gradients written and then added to.
TEST_P(Fp8OnDevice, OfGroupsIsThatOfTheCpu) {
  const std::unique_ptr<Kernels> device = find_cuda_devices().list.empty() ? nullptr : make_cuda_kernels(0, GetParam());
  CADRE_SKIP_WITHOUT(device);
  const std::unique_ptr<Kernels> cpu = make_cpu_kernels(GetParam());
  constexpr int64_t kCounts[] = {9, 0, 160, 131};
  constexpr int64_t kRows = 300, kIn = 272, kOut = 100;
  Arena arena(Arena::Mode::real, /*poison=*/true);
  const Tensor x = random_steps(arena, kRows, kIn, 1);
  const Tensor dy = random_steps(arena, kRows, kOut, 2);
  Tensor y[2], dx[2];
  std::vector<Parameter> weights[2];
  for (const size_t side : {size_t{0}, size_t{1}}) {
    const Kernels& kernels = side == 0 ? *device : *cpu;
    weights[side].resize(std::size(kCounts));
    std::vector<RowGroup> groups;
    for (size_t g = 0; g < std::size(kCounts); ++g) {
      const int64_t first = groups.empty() ? 0 : groups.back().first + groups.back().count;
      weights[side][g].value = random_steps(arena, kOut, kIn, 10 + g);
      weights[side][g].grad = arena.take("dw", DType::f32, {kOut, kIn});
      groups.push_back({first, kCounts[g], &weights[side][g]});
    }
    y[side] = arena.take("y", DType::f32, {kRows, kOut});
    dx[side] = arena.take("dx", DType::f32, {kRows, kIn});
    kernels.grouped_linear(x, groups, y[side]);
    kernels.grouped_linear_input_grad(dy, groups, dx[side]);
    kernels.grouped_linear_weight_grad(x, dy, groups, Accumulate::no);
    kernels.grouped_linear_weight_grad(x, dy, groups, Accumulate::yes);
    kernels.synchronize();
  }
  const auto expect_near = [](const Tensor& actual, const Tensor& expected, int64_t terms, double factor) {
    test::expect_near(test::values_of(actual), test::values_of(expected),
                      0x1p-13 * static_cast<double>(terms) * factor);
  };
  expect_near(y[0], y[1], kIn, largest(x) * largest(weights[0][0].value));
  expect_near(dx[0], dx[1], kOut, largest(dy) * largest(weights[0][0].value));
  for (size_t g = 0; g < std::size(kCounts); ++g) {
    expect_near(weights[0][g].grad, weights[1][g].grad, 2 * kCounts[g], largest(x) * largest(dy));
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, Fp8OnDevice, testing::Values(Precision::fp8, Precision::fp8_ue8m0));

}  // namespace
}  // namespace cadre::gpu_products_test
