// SPDX-License-Identifier: Apache-2.0
// What a row looks like where it is computed, and what it looks like on its way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "comm/base/buffer.hpp"
#include "comm/base/dtype.hpp"
#include "comm/job/request.hpp"
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

// What an exchange takes and gives: elements of equal size, wherever they lie.

// Elements anywhere in memory: element i starts at base + index[i] * stride; without an index, at base + i * stride.
struct Elements {
  const std::byte* base = nullptr;
  size_t stride = 0;  // bytes
  std::span<const int32_t> index = {};
  // On the way to the tokens: token t has elements offsets[t] .. offsets[t+1], which are to be added up.
  std::span<const int32_t> offsets = {};
  // Of the memory that they lie in. Elements without one are copied before they are sent.
  std::shared_ptr<const void> owner = {};

  const std::byte* at(int64_t i) const {
    return base + static_cast<size_t>(index.empty() ? i : index[static_cast<size_t>(i)]) * stride;
  }
  // Elements first .. first + count alone.
  Elements part(int64_t first, int64_t count) const {
    if (index.empty()) return {base + static_cast<size_t>(first) * stride, stride, {}, {}, owner};
    return {base, stride, index.subspan(static_cast<size_t>(first), static_cast<size_t>(count)), {}, owner};
  }
};

// Puts rows into the form they travel in, and back. The host does it at once; the codec of a device does it in the order of
// the work queued on the device; rows need not be there yet.

class RowCodec {
 public:
  virtual ~RowCodec() = default;

  // `count` rows, as computed and anywhere, to `wire`, where one follows the other; and back to `values`. Both lie in
  // memory(). The index is read before the call returns.
  virtual void encode(const RowFormat& format, const Elements& rows, int64_t count, std::byte* wire) const = 0;
  virtual void decode(const RowFormat& format, const Elements& wire, int64_t count, std::byte* values) const = 0;

  // Where rows lie that travel.
  virtual Memory& memory() const = 0;
  // Complete when all rows are where they belong that were encoded or decoded so far.
  virtual Request done() const = 0;
};

// Any format; done when it returns.
const RowCodec& host_codec();

}  // namespace cadre
