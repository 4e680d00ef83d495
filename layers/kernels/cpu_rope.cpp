// SPDX-License-Identifier: Apache-2.0
// Rotary embedding: the sines of a position are computed once, in fp64, and turn all heads of the token.
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "layers/kernels/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu_rope.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu_vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

// cosines[i], sines[i] of position theta^(-i / half) for i < half, rounded up to whole vectors of double. The angle is
// brought to [-pi, pi] first: Highway's functions end at 39,000.
void turn_table(double position, const double* frequencies, float* cosines, float* sines, size_t half) {
  const hn::ScalableTag<double> wide;
  const hn::Rebind<float, decltype(wide)> narrow;
  constexpr double kTurn = 2.0 * std::numbers::pi;
  for (size_t i = 0; i < half; i += hn::Lanes(wide)) {
    const auto angle = hn::Mul(hn::Set(wide, position), hn::LoadU(wide, frequencies + i));
    const auto turns = hn::Round(hn::Mul(angle, hn::Set(wide, 1.0 / kTurn)));
    const auto reduced = hn::NegMulAdd(turns, hn::Set(wide, kTurn), angle);
    hn::StoreU(hn::DemoteTo(narrow, hn::Cos(wide, reduced)), narrow, cosines + i);
    hn::StoreU(hn::DemoteTo(narrow, hn::Sin(wide, reduced)), narrow, sines + i);
  }
}

void turn_head(float* head, const float* cosines, const float* sines, size_t half) {
  for_each_vector(half, [=](size_t i, auto lanes) HWY_ATTR {
    const Float low = lanes.load(head + i);
    const Float high = lanes.load(head + half + i);
    const Float c = lanes.load(cosines + i);
    const Float s = lanes.load(sines + i);
    lanes.store(hn::NegMulAdd(high, s, hn::Mul(low, c)), head + i);
    lanes.store(hn::MulAdd(low, s, hn::Mul(high, c)), head + half + i);
  });
}

// sign is -1 to turn back.
void rope_rows(float* x, const int32_t* positions, double theta, double sign, size_t num_rows, size_t num_heads,
               size_t head_dim) {
  const size_t half = head_dim / 2;
  const size_t padded = half + hn::Lanes(hn::ScalableTag<double>());
  std::vector<double> frequencies(padded);
  for (size_t i = 0; i < half; ++i)
    frequencies[i] = std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
  std::vector<float> cosines(padded);
  std::vector<float> sines(padded);
  for (size_t t = 0; t < num_rows; ++t) {
    turn_table(sign * positions[t], frequencies.data(), cosines.data(), sines.data(), half);
    for (size_t head = 0; head < num_heads; ++head, x += head_dim) turn_head(x, cosines.data(), sines.data(), half);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(rope_rows);

void CpuKernels::rope(const Tensor& x, const Tensor& positions, double theta, RopeDirection direction) const {
  const double sign = direction == RopeDirection::forward ? 1.0 : -1.0;
  HWY_DYNAMIC_DISPATCH(rope_rows)
  (x.data<float>(), positions.data<int32_t>(), theta, sign, static_cast<size_t>(x.dim(0)),
   static_cast<size_t>(x.dim(1)), static_cast<size_t>(x.dim(2)));
}

}  // namespace cadre
#endif  // HWY_ONCE
