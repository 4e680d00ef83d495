// SPDX-License-Identifier: Apache-2.0
// The loops call to_fp8 and from_fp8, which have no branches, so that the compiler turns them into vectors of each
// instruction set.
#include "layers/kernels/cpu/fp8.hpp"

#include <algorithm>
#include <bit>
#include <vector>

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/fp8.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

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

HWY_EXPORT(amax_bits);
HWY_EXPORT(amax_bits_each);
HWY_EXPORT(round_with);
HWY_EXPORT(round_with_each);
HWY_EXPORT(add_scaled_span);
HWY_EXPORT(add_scaled_each);

namespace {

int64_t tile_end(int64_t first, int64_t extent) { return std::min(extent, first + kFp8TileChannels); }

float scale_of(uint32_t amax, Fp8Scale kind) { return fp8_scale(std::bit_cast<float>(amax), kind); }

}  // namespace

void round_tiles_to_fp8(const float* values, int64_t rows, int64_t width, Fp8Scale kind, float* codes, float* scales) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < width; first += kFp8TileChannels) {
      const int64_t at = row * width + first;
      const int64_t count = tile_end(first, width) - first;
      const float scale = scale_of(HWY_DYNAMIC_DISPATCH(amax_bits)(values + at, count, 0), kind);
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
    std::ranges::transform(amax, scales, [kind](uint32_t bits) { return scale_of(bits, kind); });
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
      const float scale = scale_of(amax, kind);
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
