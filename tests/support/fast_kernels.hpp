// SPDX-License-Identifier: Apache-2.0
// What the tests of fast kernels share: each back end beside the reference, random inputs, outputs poisoned with NaN,
// comparisons.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "layers/kernels/kernels.hpp"
#include "tests/support/fast_back_ends.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::test {

inline constexpr double u = 0x1p-24;

// A row sum in fp32: blocks of 1,024 in at least 16 running sums, 64 additions each and 6 to join them, on positive
// terms.
inline constexpr double kSumError = 70 * u;

// Below, at and above the vector widths of 4, 8 and 16, and more than one block of a row sum.
inline constexpr int64_t kWidths[] = {1, 3, 7, 8, 17, 64, 129, 1100};

class FastKernels : public testing::TestWithParam<FastBackEnd> {
 protected:
  void SetUp() override { CADRE_SKIP_WITHOUT(fast); }

  Tensor out(std::initializer_list<int64_t> shape) { return arena.take("out", DType::f32, shape); }  // NaN
  Tensor random(std::initializer_list<int64_t> shape, double scale = 1.0) {
    const Tensor tensor = out(shape);
    test::fill_random(tensor, next_id++, scale);
    return tensor;
  }
  Tensor ints(const std::vector<double>& values) {
    return test::tensor_of(arena, DType::i32, {static_cast<int64_t>(values.size())}, values);
  }
  Tensor copy(const Tensor& tensor) {
    const Tensor twin = arena.take("copy", tensor.dtype(), {tensor.numel()});
    std::memcpy(twin.raw(), tensor.raw(), tensor.bytes());
    return twin;
  }

  // |actual - expected| <= bound(i, expected), times the slack of the back end; a NaN fails.
  void expect_within(const Tensor& actual, const Tensor& expected, const std::function<double(size_t, double)>& bound) {
    fast->synchronize();
    const std::vector<double> got = test::values_of(actual);
    const std::vector<double> want = test::values_of(expected);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], want[i], GetParam().slack * bound(i, want[i])) << "element " << i;
  }
  void expect_relative(const Tensor& actual, const Tensor& expected, double relative, double absolute = 1e-37) {
    expect_within(actual, expected, [=](size_t, double value) { return relative * std::abs(value) + absolute; });
  }
  void expect_absolute(const Tensor& actual, const Tensor& expected, double absolute) {
    expect_within(actual, expected, [=](size_t, double) { return absolute; });
  }
  void expect_same_bits(const Tensor& actual, const Tensor& expected) {
    fast->synchronize();
    ASSERT_EQ(actual.bytes(), expected.bytes());
    EXPECT_EQ(std::memcmp(actual.raw(), expected.raw(), actual.bytes()), 0);
  }

  // Every magnitude that matters to exp: dense around 0, to where the results underflow.
  Tensor sweep() {
    const Tensor x = out({20'001});
    for (int64_t i = 0; i < x.numel(); ++i) {
      const double position = static_cast<double>(i - 10'000) / 10'000.0;
      x.data<float>()[i] = static_cast<float>(110.0 * position * position * position);
    }
    return x;
  }

  std::unique_ptr<Kernels> reference = make_reference_kernels();
  std::unique_ptr<Kernels> fast = GetParam().make();
  Arena arena{Arena::Mode::real, true};
  uint64_t next_id = 0;
};

}  // namespace cadre::test
