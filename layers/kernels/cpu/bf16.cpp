// SPDX-License-Identifier: Apache-2.0
// Rounding to bf16, to nearest with ties to even, NaN stays NaN: the same as to_bf16 of dtype.hpp.
#include "layers/kernels/cpu/bf16.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/bf16.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

using BitsTag = hn::ScalableTag<uint32_t>;

// The bits of the rounded value; the lower half is zero.
HWY_INLINE hn::Vec<BitsTag> rounded_bits(Float value) {
  const BitsTag tag;
  const auto bits = hn::BitCast(tag, value);
  const auto lowest_kept = hn::And(hn::ShiftRight<16>(bits), hn::Set(tag, 1U));
  const auto rounded = hn::Add(bits, hn::Add(hn::Set(tag, 0x7fffU), lowest_kept));
  const auto quiet_nan = hn::Or(bits, hn::Set(tag, 0x400000U));
  const auto is_nan = hn::RebindMask(tag, hn::IsNaN(value));
  return hn::And(hn::IfThenElse(is_nan, quiet_nan, rounded), hn::Set(tag, 0xffff0000U));
}

void round_row_to_bf16(const float* from, uint16_t* to, size_t count) {
  const hn::Rebind<uint16_t, BitsTag> half;
  const size_t lanes = hn::Lanes(BitsTag());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto upper = hn::ShiftRight<16>(rounded_bits(hn::LoadU(FloatTag(), from + i)));
    hn::StoreU(hn::TruncateTo(half, upper), half, to + i);
  }
  for (; i < count; ++i) to[i] = to_bf16(from[i]).bits;
}

void round_row_through_bf16(const float* from, float* to, size_t count) {
  for_each_vector(count, [=](size_t i, auto lanes) HWY_ATTR {
    lanes.store(hn::BitCast(FloatTag(), rounded_bits(lanes.load(from + i))), to + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(round_row_to_bf16);
HWY_EXPORT(round_row_through_bf16);

void round_to_bf16(const float* from, bf16* to, size_t count) {
  HWY_DYNAMIC_DISPATCH(round_row_to_bf16)(from, &to->bits, count);
}

void round_through_bf16(const float* from, float* to, size_t count) {
  HWY_DYNAMIC_DISPATCH(round_row_through_bf16)(from, to, count);
}

}  // namespace cadre
#endif  // HWY_ONCE
