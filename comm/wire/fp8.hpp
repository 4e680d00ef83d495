// SPDX-License-Identifier: Apache-2.0
// FP8 E4M3 without infinities: 1 sign, 4 exponent (bias 7), 3 mantissa bits; largest 448, smallest normal 2^-6, smallest
// subnormal 2^-9, NaN = 0x7f and 0xff. Micikevicius et al. 2022, "FP8 formats for deep learning", table 1.
#pragma once

#include <bit>
#include <cstdint>

namespace cadre {

inline constexpr float kFp8Max = 448.0F;

// Values that share a scale: the 128 channels of a tile, the 128 x 128 elements of a block of a weight.
inline constexpr int64_t kFp8TileChannels = 128;
constexpr int64_t num_fp8_tiles(int64_t extent) { return (extent + kFp8TileChannels - 1) / kFp8TileChannels; }

// What a scale may be: any float, or, as E8M0 holds it, the next power of two.
enum class Fp8Scale : uint8_t { fp32, ue8m0 };

// Of values whose largest magnitude is `amax`: max(amax, 1e-4) / 448, or 2^ceil(log2) of that (DeepSeek-V3, arXiv
// 2412.19437, section 3.3.2). NaN stays NaN.
constexpr float fp8_scale(float amax, Fp8Scale kind) {
  const float scale = (amax < 1e-4F ? 1e-4F : amax) / kFp8Max;
  if (kind == Fp8Scale::fp32) return scale;
  const auto bits = std::bit_cast<uint32_t>(scale);
  if (bits >= 0x7f800000U) return scale;
  return std::bit_cast<float>((bits + 0x7fffffU) & 0x7f800000U);
}

// Round to nearest, ties to even; beyond 448 saturates; NaN stays NaN.
constexpr uint8_t to_fp8(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  // Normal: keep 3 mantissa bits, move the exponent's bias from 127 to 7. Subnormal: adding 2^14 leaves a unit in the
  // last place of 2^-9, so the sum of floats rounds as the format wants.
  const uint32_t normal = ((magnitude + 0x7ffffU + ((magnitude >> 20) & 1U)) >> 20) - (120U << 3);
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 16384.0F) - std::bit_cast<uint32_t>(16384.0F);
  uint32_t code = magnitude < 0x3c800000U ? subnormal : normal;  // 2^-6
  code = magnitude >= 0x43e00000U ? 0x7eU : code;                // 448
  code = magnitude > 0x7f800000U ? 0x7fU : code;                 // NaN
  return static_cast<uint8_t>(sign | code);
}

constexpr float from_fp8(uint8_t code) {
  const uint32_t sign = (code & 0x80U) << 24;
  const uint32_t magnitude = code & 0x7fU;
  const auto subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9F);
  uint32_t bits = magnitude < 8U ? subnormal : (magnitude + (120U << 3)) << 20;
  bits = magnitude == 0x7fU ? 0x7fc00000U : bits;
  return std::bit_cast<float>(sign | bits);
}

}  // namespace cadre
