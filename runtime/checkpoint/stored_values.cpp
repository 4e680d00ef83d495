// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/stored_values.hpp"

#include <fmt/ranges.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "comm/base/check.hpp"
#include "comm/wire/fp8.hpp"

namespace cadre {
namespace {

int64_t num_blocks(int64_t extent) { return (extent + kFp8TileChannels - 1) / kFp8TileChannels; }

void read_bf16(std::span<const std::byte> from, float* to) {
  for (size_t i = 0; i < from.size() / sizeof(bf16); ++i) {
    bf16 element;
    std::memcpy(&element, &from[i * sizeof element], sizeof element);
    to[i] = to_float(element);
  }
}

// IEEE 754 binary16: 5 bits of exponent, 10 of fraction. Every value is a float.
float from_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  float size = 0.0F;
  if (exponent == 31) {
    size = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else {
    size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                         : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -size : size;
}

void read_half(std::span<const std::byte> from, float* to) {
  for (size_t i = 0; i < from.size() / sizeof(uint16_t); ++i) {
    uint16_t element = 0;
    std::memcpy(&element, &from[i * sizeof element], sizeof element);
    to[i] = from_half(element);
  }
}

bool is_half(const TensorEntry& entry) { return entry.dtype_name == "F16"; }

}  // namespace

std::vector<int64_t> scale_shape(const std::vector<int64_t>& shape) {
  return {num_blocks(shape.at(0)), num_blocks(shape.at(1))};
}

StoredValues::StoredValues(ShardedReader& reader, const std::string& directory, std::string_view name)
    : values_(reader.at(name)) {
  const std::string file = (std::filesystem::path(directory) / reader.weight_map().find(name)->second).string();
  const std::optional<DType> dtype = entry().dtype;
  CADRE_CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::fp8 || is_half(entry()),
              fmt::format("{}: tensor {} has elements {}, expected F32, F16, BF16 or F8_E4M3", file, quote_name(name),
                          entry().dtype_name),
              "convert the weights first");
  if (dtype == DType::fp8) find_scales(reader, file);
}

void StoredValues::find_scales(ShardedReader& reader, const std::string& file) {
  const std::string name = entry().name + std::string(kScaleSuffix);
  CADRE_CHECK(entry().shape.size() == 2,
              fmt::format("{}: tensor {} is F8_E4M3 with shape [{}], expected a matrix", file, quote_name(entry().name),
                          fmt::join(entry().shape, ",")),
              "only matrices have scales by block");
  scales_.emplace(reader.at(name));
  const TensorEntry& found = scales_->entry;
  const std::vector<int64_t> wanted = scale_shape(entry().shape);
  CADRE_CHECK(found.dtype == DType::f32 && found.shape == wanted,
              fmt::format("{}: tensor {} is {}[{}], expected F32[{}], one scale for 128 x 128 values of {}", file,
                          quote_name(name), found.dtype_name, fmt::join(found.shape, ","), fmt::join(wanted, ","),
                          quote_name(entry().name)),
              "Cadre reads weight_block_size [128, 128]");
}

size_t StoredValues::count() const {
  return entry().bytes() / (is_half(entry()) ? sizeof(uint16_t) : size_of(*entry().dtype));
}

void StoredValues::read(float* to) const {
  if (values_.bytes.empty()) return;
  if (is_half(entry())) return read_half(values_.bytes, to);
  switch (*entry().dtype) {
    case DType::f32: std::memcpy(to, values_.bytes.data(), values_.bytes.size()); return;
    case DType::bf16: read_bf16(values_.bytes, to); return;
    default: read_fp8(to);
  }
}

void StoredValues::read_fp8(float* to) const {
  const int64_t width = entry().shape[1];
  const auto* codes = reinterpret_cast<const uint8_t*>(values_.bytes.data());
  std::vector<float> scales(scales_->bytes.size() / sizeof(float));
  std::memcpy(scales.data(), scales_->bytes.data(), scales_->bytes.size());
  for (int64_t row = 0; row < entry().shape[0]; ++row) {
    const float* row_scales = scales.data() + row / kFp8TileChannels * num_blocks(width);
    for (int64_t i = 0; i < width; ++i) {
      to[row * width + i] = from_fp8(codes[row * width + i]) * row_scales[i / kFp8TileChannels];
    }
  }
}

}  // namespace cadre
