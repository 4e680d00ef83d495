// SPDX-License-Identifier: Apache-2.0
// Rounding to bf16, to nearest with ties to even, NaN stays NaN: the same as to_bf16 of dtype.hpp.
#include "layers/kernels/cpu/narrow.hpp"

#include <algorithm>
#include <bit>
#include <vector>

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/narrow.cpp"
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

// The loops call to_fp8 and from_fp8, which have no branches, so that the compiler turns them into vectors of each
// instruction set.

// Largest magnitude and `so_far`, as bits: they are ordered like the numbers, and NaN is above all.
uint32_t amax_bits(const float* values, int64_t count, uint32_t so_far) {
  for (int64_t i = 0; i < count; ++i) so_far = std::max(so_far, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffU);
  return so_far;
}

void amax_bits_each(const float* values, int64_t count, uint32_t* so_far) {
  for (int64_t i = 0; i < count; ++i) {
    so_far[i] = std::max(so_far[i], std::bit_cast<uint32_t>(values[i]) & 0x7fffffffU);
  }
}

void round_with(const float* values, int64_t count, float scale, float* codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = from_fp8(to_fp8(values[i] / scale));
}

void round_with_each(const float* values, int64_t count, const float* scales, float* codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = from_fp8(to_fp8(values[i] / scales[i]));
}

void add_scaled_span(const float* products, int64_t count, float scale, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += products[i] * scale;
}

void add_scaled_each(const float* products, int64_t count, float row_scale, const float* scales, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += products[i] * (row_scale * scales[i]);
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

HWY_EXPORT(amax_bits);
HWY_EXPORT(amax_bits_each);
HWY_EXPORT(round_with);
HWY_EXPORT(round_with_each);
HWY_EXPORT(add_scaled_span);
HWY_EXPORT(add_scaled_each);

namespace {

int64_t tile_end(int64_t first, int64_t extent) { return std::min(extent, first + kFp8TileChannels); }

float scale_of_amax(uint32_t amax, Fp8Scale kind) { return fp8_scale(std::bit_cast<float>(amax), kind); }

}  // namespace

void round_tiles_to_fp8(const float* values, int64_t rows, int64_t width, Fp8Scale kind, float* codes, float* scales) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < width; first += kFp8TileChannels) {
      const int64_t at = row * width + first;
      const int64_t count = tile_end(first, width) - first;
      const float scale = scale_of_amax(HWY_DYNAMIC_DISPATCH(amax_bits)(values + at, count, 0), kind);
      HWY_DYNAMIC_DISPATCH(round_with)(values + at, count, scale, codes + at);
      *scales++ = scale;
    }
  }
}

void round_column_tiles_to_fp8(const float* values, int64_t rows, int64_t width, Fp8Scale kind, float* codes,
                               float* scales) {
  std::vector<uint32_t> amax(static_cast<size_t>(width));
  for (int64_t first = 0; first < rows; first += kFp8TileChannels, scales += width) {
    std::ranges::fill(amax, 0U);
    const int64_t end = tile_end(first, rows);
    for (int64_t row = first; row < end; ++row) {
      HWY_DYNAMIC_DISPATCH(amax_bits_each)(values + row * width, width, amax.data());
    }
    std::ranges::transform(amax, scales, [kind](uint32_t bits) { return scale_of_amax(bits, kind); });
    for (int64_t row = first; row < end; ++row) {
      HWY_DYNAMIC_DISPATCH(round_with_each)(values + row * width, width, scales, codes + row * width);
    }
  }
}

void round_blocks_to_fp8(const float* values, int64_t rows, int64_t width, Fp8Scale kind, float* codes, float* scales) {
  for (int64_t first_row = 0; first_row < rows; first_row += kFp8TileChannels) {
    const int64_t end_row = tile_end(first_row, rows);
    for (int64_t first = 0; first < width; first += kFp8TileChannels) {
      const int64_t count = tile_end(first, width) - first;
      uint32_t amax = 0;
      for (int64_t row = first_row; row < end_row; ++row) {
        amax = HWY_DYNAMIC_DISPATCH(amax_bits)(values + row * width + first, count, amax);
      }
      const float scale = scale_of_amax(amax, kind);
      for (int64_t row = first_row; row < end_row; ++row) {
        const int64_t at = row * width + first;
        HWY_DYNAMIC_DISPATCH(round_with)(values + at, count, scale, codes + at);
      }
      *scales++ = scale;
    }
  }
}

void add_scaled(const float* products, float row_scale, const float* column_scales, int64_t columns_per_scale,
                int64_t count, float* sums) {
  if (columns_per_scale == 1) {
    HWY_DYNAMIC_DISPATCH(add_scaled_each)(products, count, row_scale, column_scales, sums);
    return;
  }
  for (int64_t first = 0; first < count; first += columns_per_scale) {
    const float scale = row_scale * column_scales[first / columns_per_scale];
    const int64_t part = std::min(columns_per_scale, count - first);
    HWY_DYNAMIC_DISPATCH(add_scaled_span)(products + first, part, scale, sums + first);
  }
}

}  // namespace cadre
#endif  // HWY_ONCE
