// SPDX-License-Identifier: Apache-2.0
// Packs rows of f32 for an exchange on a Machine (call.hpp), in the order of its launches.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "comm/wire/format.hpp"
#include "comm/wire/fp8.hpp"
#include "layers/kernels/gpu/call.hpp"
#include "layers/kernels/gpu/elements.hpp"
#include "layers/kernels/gpu/rows.hpp"

namespace cadre::gpu {

// Bodies that put rows of floats into the form they travel in and back, to the bits of comm/wire/format.hpp
// but for those of a NaN, whose sign is the processor's.

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

template <class Machine>
class DeviceCodec final : public RowCodec {
 public:
  explicit DeviceCodec(std::shared_ptr<Machine> machine) : machine_(std::move(machine)) {}

  void encode(const RowFormat& format, const Elements& rows, int64_t count, std::byte* wire) const override {
    check(format);
    if (count == 0) return;
    Call<Machine> call(*machine_);
    const PickedRows from = call.rows(all(rows, format.dtype, format.width), rows.index, count);
    std::byte* to = call.template out<std::byte>(bytes_at(wire, count, format.wire_bytes()));
    switch (format.wire) {
      case Wire::same: copy(call, from, reinterpret_cast<float*>(to), count, format.width); break;
      case Wire::bf16: call.blocks(count, EncodeBf16{from, reinterpret_cast<bf16*>(to), format.width}); break;
      case Wire::fp8: call.blocks(count * fp8(format).tiles(), EncodeFp8{from, to, fp8(format)}); break;
    }
    call.finish();
  }

  void decode(const RowFormat& format, const Elements& wire, int64_t count, std::byte* values) const override {
    check(format);
    if (count == 0) return;
    Call<Machine> call(*machine_);
    const auto wire_bytes = static_cast<int64_t>(format.wire_bytes());
    const PickedRows from = call.rows(all(wire, DType::u8, wire_bytes), wire.index, count);
    auto* to = call.template out<float>(bytes_at(values, count, format.row_bytes()));
    switch (format.wire) {
      case Wire::same: copy(call, from, to, count, format.width); break;
      case Wire::bf16: call.blocks(count, DecodeBf16{from, to, format.width}); break;
      case Wire::fp8: call.blocks(count, DecodeFp8{from, to, fp8(format)}); break;
    }
    call.finish();
  }

  Memory& memory() const override { return machine_->message_memory(); }
  Request done() const override { return machine_->launched(); }

 private:
  static void check(const RowFormat& format) {
    CADRE_CHECK(format.dtype == DType::f32, fmt::format("a device packs no rows of {}", name_of(format.dtype)));
  }
  static Rows all(const Elements& elements, DType dtype, int64_t width) {
    return {elements.base, static_cast<int64_t>(elements.stride), dtype, width};
  }
  static Tensor bytes_at(std::byte* data, int64_t count, size_t row_bytes) {
    return {data, DType::u8, {count * static_cast<int64_t>(row_bytes)}};
  }
  static Fp8Row fp8(const RowFormat& format) {
    return {format.width, static_cast<int64_t>(format.wire_bytes()),
            static_cast<int64_t>(fp8_scales_offset(format.width))};
  }
  static void copy(Call<Machine>& call, const PickedRows& from, float* to, int64_t count, int64_t width) {
    call.blocks(count, GatherRows{from, nullptr, to, width});
  }

  std::shared_ptr<Machine> machine_;
};

}  // namespace cadre::gpu
