// SPDX-License-Identifier: Apache-2.0
// AdamW with its moments in bf16: the step is that of f32 moments, and only what is kept is rounded.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "layers/kernels/kernels.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::bf16_moments_test {
namespace {

constexpr AdamWStep kStep = {.learning_rate = 3e-3,
                             .beta1 = 0.9,
                             .beta2 = 0.95,
                             .epsilon = 1e-8,
                             .weight_decay = 0.1,
                             .grad_scale = 0.7,
                             .step = 3};

struct Update {
  Tensor value, m, v;

  // Moments that are bf16 numbers, stored as `type`.
  Update(Arena& arena, int64_t count, DType type)
      : value(test::random_tensor(arena, DType::f32, {count}, 1)),
        m(arena.take("m", type, {count})),
        v(arena.take("v", type, {count})) {
    const Random random(7, "moments", 0);
    for (int64_t i = 0; i < count; ++i) {
      const double normal = random.normal(static_cast<uint64_t>(i));
      set(m, i, to_bf16(static_cast<float>(0.1 * normal)));
      set(v, i, to_bf16(static_cast<float>(0.05 + 0.1 * normal * normal)));
    }
  }
  static void set(const Tensor& moments, int64_t i, bf16 number) {
    if (moments.dtype() == DType::bf16) {
      moments.data<bf16>()[i] = number;
    } else {
      moments.data<float>()[i] = to_float(number);
    }
  }
};

// 2500 elements: the CPU takes them in pieces.
TEST(Bf16Moments, TakeTheStepOfF32MomentsAndAreRoundedOnce) {
  constexpr int64_t kCount = 2500;
  Arena arena;
  const Tensor grad = test::random_tensor(arena, DType::f32, {kCount}, 2);
  const auto kernels = make_cpu_kernels(Precision::fp32);
  const Update whole(arena, kCount, DType::f32);
  const Update halved(arena, kCount, DType::bf16);
  kernels->adamw(kStep, whole.value, grad, whole.m, whole.v);
  kernels->adamw(kStep, halved.value, grad, halved.m, halved.v);
  EXPECT_EQ(test::values_of(halved.value), test::values_of(whole.value));
  for (int64_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(halved.m.data<bf16>()[i].bits, to_bf16(whole.m.data<float>()[i]).bits) << i;
    ASSERT_EQ(halved.v.data<bf16>()[i].bits, to_bf16(whole.v.data<float>()[i]).bits) << i;
  }
}

// The reference adds in fp64: a bf16 may fall to the other side of a rounding, one unit of 8 bits.
TEST(Bf16Moments, EqualTheReference) {
  constexpr int64_t kCount = 300;
  Arena arena;
  const Tensor grad = test::random_tensor(arena, DType::f32, {kCount}, 2);
  const Update fast(arena, kCount, DType::bf16);
  const Update exact(arena, kCount, DType::bf16);
  make_cpu_kernels(Precision::fp32)->adamw(kStep, fast.value, grad, fast.m, fast.v);
  make_reference_kernels()->adamw(kStep, exact.value, grad, exact.m, exact.v);
  // As in the test of f32 moments: u of the value and 12 u of a step below 10 learning rates.
  test::expect_near(test::values_of(fast.value), test::values_of(exact.value), 0x1p-24 * (2 * 5 + 12 * 10 * 3e-3));
  for (int64_t i = 0; i < kCount; ++i) {
    for (const auto& [left, right] : {std::pair(fast.m, exact.m), std::pair(fast.v, exact.v)}) {
      const float expected = to_float(right.data<bf16>()[i]);
      ASSERT_NEAR(to_float(left.data<bf16>()[i]), expected, 0x1p-7F * std::fabs(expected)) << i;
    }
  }
}

}  // namespace
}  // namespace cadre::bf16_moments_test
