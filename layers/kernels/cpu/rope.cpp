// SPDX-License-Identifier: Apache-2.0
// Rotary embedding: the sines of a position are computed once, in fp64, and turn all heads of the token.
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "layers/kernels/cpu/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/rope.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

// cosines[i], sines[i] of position frequencies[i] for i < pairs, times factor, rounded up to whole vectors of double. The
// angle is brought to [-pi, pi] first: Highway's functions end at 39,000.
void turn_table(double position, double factor, const double* frequencies, float* cosines, float* sines, size_t pairs) {
  const hn::ScalableTag<double> wide;
  const hn::Rebind<float, decltype(wide)> narrow;
  constexpr double kTurn = 2.0 * std::numbers::pi;
  const auto scale = hn::Set(wide, factor);
  for (size_t i = 0; i < pairs; i += hn::Lanes(wide)) {
    const auto angle = hn::Mul(hn::Set(wide, position), hn::LoadU(wide, frequencies + i));
    const auto turns = hn::Round(hn::Mul(angle, hn::Set(wide, 1.0 / kTurn)));
    const auto reduced = hn::NegMulAdd(turns, hn::Set(wide, kTurn), angle);
    hn::StoreU(hn::DemoteTo(narrow, hn::Mul(scale, hn::Cos(wide, reduced))), narrow, cosines + i);
    hn::StoreU(hn::DemoteTo(narrow, hn::Mul(scale, hn::Sin(wide, reduced))), narrow, sines + i);
  }
}

void turn_halves(float* head, const float* cosines, const float* sines, size_t pairs) {
  for_each_vector(pairs, [=](size_t i, auto lanes) HWY_ATTR {
    const Float low = lanes.load(head + i);
    const Float high = lanes.load(head + pairs + i);
    const Float c = lanes.load(cosines + i);
    const Float s = lanes.load(sines + i);
    lanes.store(hn::NegMulAdd(high, s, hn::Mul(low, c)), head + i);
    lanes.store(hn::MulAdd(low, s, hn::Mul(high, c)), head + pairs + i);
  });
}

void turn_neighbours(float* head, const float* cosines, const float* sines, size_t pairs) {
  for (size_t i = 0; i < pairs; ++i) {
    const float even = head[2 * i];
    const float odd = head[2 * i + 1];
    head[2 * i] = even * cosines[i] - odd * sines[i];
    head[2 * i + 1] = even * sines[i] + odd * cosines[i];
  }
}

// sign is -1 to turn back.
void rope_rows(float* x, const int32_t* positions, const Rope& rope, double sign, size_t num_rows, size_t num_heads,
               size_t head_dim) {
  const size_t pairs = rope.frequencies.size();
  const size_t padded = pairs + hn::Lanes(hn::ScalableTag<double>());
  std::vector<double> frequencies(rope.frequencies);
  frequencies.resize(padded);
  std::vector<float> cosines(padded);
  std::vector<float> sines(padded);
  x += rope.first;
  for (size_t t = 0; t < num_rows; ++t) {
    turn_table(sign * positions[t], rope.factor, frequencies.data(), cosines.data(), sines.data(), pairs);
    for (size_t head = 0; head < num_heads; ++head, x += head_dim) {
      if (rope.layout == RopeLayout::interleaved) {
        turn_neighbours(x, cosines.data(), sines.data(), pairs);
      } else {
        turn_halves(x, cosines.data(), sines.data(), pairs);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(rope_rows);

void CpuKernels::rope(const Tensor& x, const Tensor& positions, const Rope& rope, RopeDirection direction) const {
  const double sign = direction == RopeDirection::forward ? 1.0 : -1.0;
  const auto num_heads = static_cast<size_t>(x.dim(1));
  const auto head_dim = static_cast<size_t>(x.dim(2));
  cpu::for_pieces(threads_, static_cast<size_t>(x.dim(0)), num_heads * head_dim, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(rope_rows)
    (x.data<float>() + first * num_heads * head_dim, positions.data<int32_t>() + first, rope, sign, count, num_heads,
     head_dim);
  });
}

}  // namespace cadre
#endif  // HWY_ONCE
