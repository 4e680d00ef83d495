// SPDX-License-Identifier: Apache-2.0
// Bodies that put rows of floats into the form they travel in and back, to the bits of comm/wire/format.hpp
// but for those of a NaN, whose sign is the processor's.
#pragma once

#include <cmath>
#include <type_traits>

#include "comm/wire/fp8.hpp"
#include "layers/kernels/gpu/elements.hpp"
#include "layers/kernels/gpu/rows.hpp"

namespace cadre::gpu {

// A block a row.
struct EncodeBf16 {
  PickedRows rows;
  bf16* wire;
  int64_t width;
  CADRE_DEVICE bool fours() const { return rows.in_fours() && in_fours(width, wire); }
  CADRE_DEVICE int threads() const { return threads_for_columns(width, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const ToBf16 row = {rows[block.index()], wire + block.index() * width};
    each_column(block, width, fours(),
                [&]<class V>(std::type_identity<V>, int64_t i) { row.template operator()<V>(i); });
  }
};

struct DecodeBf16 {
  PickedRows wire;
  float* values;
  int64_t width;
  CADRE_DEVICE bool fours() const { return wire.in_fours() && in_fours(width, values); }
  CADRE_DEVICE int threads() const { return threads_for_columns(width, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const auto* from = reinterpret_cast<const bf16*>(wire[block.index()]);
    float* to = values + block.index() * width;
    each_column(block, width, fours(), [&]<class V>(std::type_identity<V>, int64_t i) {
      if constexpr (std::is_same_v<V, float>) {
        to[i] = load(from[i]);
      } else {
        const auto four = at<FourOf<bf16>>(from, i);
        at<V>(to, i) = V{{load(four.at[0]), load(four.at[1]), load(four.at[2]), load(four.at[3])}};
      }
    });
  }
};

// Rows of `wire_bytes`: codes, and from `scales_at` on the scales of 128 values each.
struct Fp8Row {
  int64_t width;
  int64_t wire_bytes;
  int64_t scales_at;
  CADRE_DEVICE int64_t tiles() const { return tiles_of(width, kFp8TileChannels); }
};

// A block a tile. NaN does not count for the scale.
struct EncodeFp8 {
  PickedRows rows;
  std::byte* wire;
  Fp8Row row;
  static constexpr int threads() { return kWarp; }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t r = block.index() / row.tiles();
    const int64_t tile = block.index() % row.tiles();
    const int64_t first = tile * kFp8TileChannels;
    const int64_t count = row.width - first < kFp8TileChannels ? row.width - first : kFp8TileChannels;
    const float* from = rows[r] + first;
    const float amax = block.reduce(
        count, 0.0F, [&](int64_t i) { return from[i] == from[i] ? fabsf(from[i]) : 0.0F; }, Larger());
    const float scale = fp8_scale(amax, Fp8Scale::fp32);
    std::byte* to = wire + r * row.wire_bytes;
    auto* codes = reinterpret_cast<uint8_t*>(to) + first;
    block.each(count, [&](int64_t i) { codes[i] = to_fp8(from[i] / scale); });
    block.each(1, [&](int64_t) { reinterpret_cast<float*>(to + row.scales_at)[tile] = scale; });
  }
};

// A block a row.
struct DecodeFp8 {
  PickedRows wire;
  float* values;
  Fp8Row row;
  CADRE_DEVICE int threads() const { return threads_for(row.width); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const auto* from = reinterpret_cast<const std::byte*>(wire[block.index()]);
    const auto* codes = reinterpret_cast<const uint8_t*>(from);
    const auto* scales = reinterpret_cast<const float*>(from + row.scales_at);
    float* to = values + block.index() * row.width;
    block.each(row.width, [&](int64_t i) { to[i] = from_fp8(codes[i]) * scales[i / kFp8TileChannels]; });
  }
};

}  // namespace cadre::gpu
