// SPDX-License-Identifier: Apache-2.0
// Box-Muller in vectors. Their logarithm and cosine err by a few units in the last place of a double; where these could change the
// float that a value is rounded to, the value is computed by the scalar function.
#include "layers/tensor/normal_values.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <numbers>

// foreach_target.h compiles this file once for each instruction set, and must come first.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/tensor/normal_values.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// low[i] and high[i] are uniform in [0, 1): values[i] and how much it may be off.
void box_muller(const double* low, const double* high, double scale, double* values, double* errors, size_t count) {
  constexpr double kRelativeError = 0x1.0p-46;  // 64 units in the last place, where a few are promised
  constexpr double kCosineError = 0x1.0p-49;    // of a cosine near zero, which its argument's rounding makes absolute
  const hn::ScalableTag<double> tag;
  for (size_t i = 0; i < count; i += hn::Lanes(tag)) {
    const auto one_less = hn::Sub(hn::Set(tag, 1.0), hn::LoadU(tag, low + i));
    const auto radius = hn::Sqrt(hn::Mul(hn::Set(tag, -2.0), hn::Log(tag, one_less)));
    const auto angle = hn::Mul(hn::Set(tag, 2.0 * std::numbers::pi), hn::LoadU(tag, high + i));
    const auto length = hn::Mul(hn::Set(tag, scale), radius);
    const auto value = hn::Mul(length, hn::Cos(tag, angle));
    const auto error =
        hn::MulAdd(hn::Abs(value), hn::Set(tag, kRelativeError), hn::Mul(hn::Abs(length), hn::Set(tag, kCosineError)));
    hn::StoreU(value, tag, values + i);
    hn::StoreU(error, tag, errors + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {
namespace {

HWY_EXPORT(box_muller);

constexpr size_t kBlock = 256;  // a multiple of all vectors

double to_unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

}  // namespace

void fill_normal(const Random& random, double scale, std::span<float> values) {
  std::array<double, kBlock> low{};
  std::array<double, kBlock> high{};
  std::array<double, kBlock> drawn{};
  std::array<double, kBlock> errors{};
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t count = std::min(kBlock, values.size() - begin);
    for (size_t i = 0; i < count; ++i) {
      const auto [first, second] = random.block(begin + i);
      low[i] = to_unit(first);
      high[i] = to_unit(second);
    }
    HWY_DYNAMIC_DISPATCH(box_muller)(low.data(), high.data(), scale, drawn.data(), errors.data(), kBlock);
    for (size_t i = 0; i < count; ++i) {
      const auto least = static_cast<float>(drawn[i] - errors[i]);
      const bool is_sure = least == static_cast<float>(drawn[i] + errors[i]) && least != 0.0F;
      values[begin + i] = is_sure ? least : static_cast<float>(scale * random.normal(begin + i));
    }
  }
}

}  // namespace cadre
#endif  // HWY_ONCE
