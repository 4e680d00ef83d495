// SPDX-License-Identifier: Apache-2.0
// What a row looks like where it is computed, and what it looks like on its way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "comm/base/dtype.hpp"
#include "comm/wire/fp8.hpp"

namespace cadre {

// same: as computed. bf16: rounded. fp8: E4M3 with one fp32 scale for each 128 channels, scale = max(amax, 1e-4) / 448
// (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
enum class Wire : uint8_t { same, bf16, fp8 };

std::string_view name_of(Wire wire);  // "fp32", "bf16", "fp8"
Wire wire_named(std::string_view name);

// Bytes of an fp8 row before its scales: the codes, up to a whole float.
size_t fp8_scales_offset(int64_t width);

struct RowFormat {
  DType dtype = DType::f32;
  int64_t width = 0;
  Wire wire = Wire::same;

  size_t row_bytes() const { return static_cast<size_t>(width) * size_of(dtype); }
  // bf16: width x 2. fp8: codes, rounded up to whole scales, then the scales.
  size_t wire_bytes() const;

  static RowFormat of_bytes(size_t bytes) { return {DType::u8, static_cast<int64_t>(bytes), Wire::same}; }
  bool operator==(const RowFormat&) const = default;
};

// One row; f32 or f64 values where the wire differs from them. What local rows go through too, so that the answer does
// not depend on which rows crossed.
void encode_row(const RowFormat& format, const std::byte* values, std::byte* wire);
void decode_row(const RowFormat& format, const std::byte* wire, std::byte* values);

// sum += values, one row as computed; f32, f64 or i64.
void add_row(const RowFormat& format, const std::byte* values, std::byte* sum);

}  // namespace cadre
