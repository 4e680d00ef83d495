// SPDX-License-Identifier: Apache-2.0
#include "comm/wire/format.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

template <class T>
void encode_bf16(const T* values, int64_t width, std::byte* wire) {
  auto* out = reinterpret_cast<bf16*>(wire);
  for (int64_t i = 0; i < width; ++i) out[i] = to_bf16(static_cast<float>(values[i]));
}

template <class T>
void decode_bf16(const std::byte* wire, int64_t width, T* values) {
  const auto* in = reinterpret_cast<const bf16*>(wire);
  for (int64_t i = 0; i < width; ++i) values[i] = static_cast<T>(to_float(in[i]));
}

template <class T>
void encode_fp8(const T* values, int64_t width, std::byte* wire) {
  auto* codes = reinterpret_cast<uint8_t*>(wire);
  std::byte* scales = wire + fp8_scales_offset(width);
  for (int64_t tile = 0; tile < num_fp8_tiles(width); ++tile) {
    const int64_t first = tile * kFp8TileChannels;
    const int64_t last = std::min(width, first + kFp8TileChannels);
    float amax = 0.0F;
    for (int64_t i = first; i < last; ++i) amax = std::max(amax, std::fabs(static_cast<float>(values[i])));
    const float scale = fp8_scale(amax, Fp8Scale::fp32);
    std::memcpy(scales + static_cast<size_t>(tile) * sizeof scale, &scale, sizeof scale);
    for (int64_t i = first; i < last; ++i) codes[i] = to_fp8(static_cast<float>(values[i]) / scale);
  }
}

template <class T>
void decode_fp8(const std::byte* wire, int64_t width, T* values) {
  const auto* codes = reinterpret_cast<const uint8_t*>(wire);
  const std::byte* scales = wire + fp8_scales_offset(width);
  for (int64_t tile = 0; tile < num_fp8_tiles(width); ++tile) {
    const int64_t first = tile * kFp8TileChannels;
    const int64_t last = std::min(width, first + kFp8TileChannels);
    float scale = 0.0F;
    std::memcpy(&scale, scales + static_cast<size_t>(tile) * sizeof scale, sizeof scale);
    for (int64_t i = first; i < last; ++i) values[i] = static_cast<T>(from_fp8(codes[i]) * scale);
  }
}

template <class T>
void encode_as(const RowFormat& format, const std::byte* values, std::byte* wire) {
  const auto* typed = reinterpret_cast<const T*>(values);
  return format.wire == Wire::bf16 ? encode_bf16(typed, format.width, wire) : encode_fp8(typed, format.width, wire);
}

template <class T>
void decode_as(const RowFormat& format, const std::byte* wire, std::byte* values) {
  auto* typed = reinterpret_cast<T*>(values);
  return format.wire == Wire::bf16 ? decode_bf16(wire, format.width, typed) : decode_fp8(wire, format.width, typed);
}

[[noreturn]] void refuse(const RowFormat& format) {
  throw Error(ErrorKind::internal,
              fmt::format("no {} on the wire for {}", name_of(format.wire), name_of(format.dtype)));
}

class HostCodec final : public RowCodec {
 public:
  void encode(const RowFormat& format, const Elements& rows, int64_t count, std::byte* wire) const override {
    for (int64_t i = 0; i < count; ++i, wire += format.wire_bytes()) encode_row(format, rows.at(i), wire);
  }
  void decode(const RowFormat& format, const Elements& wire, int64_t count, std::byte* values) const override {
    for (int64_t i = 0; i < count; ++i, values += format.row_bytes()) decode_row(format, wire.at(i), values);
  }
  Memory& memory() const override { return host_memory(); }
  Request done() const override { return {}; }
};

}  // namespace

std::string_view name_of(Wire wire) {
  switch (wire) {
    case Wire::same: return "fp32";
    case Wire::bf16: return "bf16";
    case Wire::fp8: return "fp8";
  }
  return "?";
}

Wire wire_named(std::string_view name) {
  for (const Wire wire : {Wire::same, Wire::bf16, Wire::fp8}) {
    if (name == name_of(wire)) return wire;
  }
  throw Error(ErrorKind::input, fmt::format("no format of rows is called '{}'", name), "fp32, bf16 or fp8");
}

size_t fp8_scales_offset(int64_t width) {
  return (static_cast<size_t>(width) + sizeof(float) - 1) / sizeof(float) * sizeof(float);
}

size_t RowFormat::wire_bytes() const {
  switch (wire) {
    case Wire::same: return row_bytes();
    case Wire::bf16: return static_cast<size_t>(width) * sizeof(bf16);
    case Wire::fp8: return fp8_scales_offset(width) + static_cast<size_t>(num_fp8_tiles(width)) * sizeof(float);
  }
  return 0;
}

void encode_row(const RowFormat& format, const std::byte* values, std::byte* wire) {
  if (format.wire == Wire::same) {
    std::memcpy(wire, values, format.row_bytes());
  } else if (format.dtype == DType::f32) {
    encode_as<float>(format, values, wire);
  } else if (format.dtype == DType::f64) {
    encode_as<double>(format, values, wire);
  } else {
    refuse(format);
  }
}

void decode_row(const RowFormat& format, const std::byte* wire, std::byte* values) {
  if (format.wire == Wire::same) {
    std::memcpy(values, wire, format.row_bytes());
  } else if (format.dtype == DType::f32) {
    decode_as<float>(format, wire, values);
  } else if (format.dtype == DType::f64) {
    decode_as<double>(format, wire, values);
  } else {
    refuse(format);
  }
}

void add_row(const RowFormat& format, const std::byte* values, std::byte* sum) {
  const auto add_as = [&]<class T>(T /*type*/) {
    const auto* from = reinterpret_cast<const T*>(values);
    auto* into = reinterpret_cast<T*>(sum);
    for (int64_t i = 0; i < format.width; ++i) into[i] += from[i];
  };
  switch (format.dtype) {
    case DType::f32: return add_as(float{});
    case DType::f64: return add_as(double{});
    case DType::i64: return add_as(int64_t{});
    default: throw Error(ErrorKind::internal, fmt::format("no sums of {} rows", name_of(format.dtype)));
  }
}

const RowCodec& host_codec() {
  static const HostCodec codec;
  return codec;
}

}  // namespace cadre
