// SPDX-License-Identifier: Apache-2.0
// The JSON header of a safetensors file: what it says of each tensor, how it is checked and how it is written.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/base/dtype.hpp"

namespace cadre {

// An element type of the format. Rows of the table stand in the format's own order; a file lists the last ones first.
struct SafetensorsDType {
  std::string_view name;
  unsigned bits;
  std::optional<DType> dtype;  // empty: Cadre has no such type
};

const SafetensorsDType* find_safetensors_dtype(std::string_view name);  // nullptr when unknown
const SafetensorsDType& safetensors_dtype(DType dtype);

// One tensor of a file, row-major, little-endian.
struct TensorEntry {
  std::string name;
  std::string_view dtype_name;  // as the file says it: "BF16", "F8_E4M3"
  std::optional<DType> dtype;   // empty when Cadre has no such element type
  std::vector<int64_t> shape;   // empty: a scalar
  uint64_t begin = 0;           // bytes [begin, end) of the data that follow the header
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<TensorEntry> entries;  // in the order of their data
  std::map<std::string, std::string> metadata;
};

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;
inline constexpr std::string_view kMetadataKey = "__metadata__";

// Throws unless `text` is a header and its tensors fill `data_bytes` bytes without hole or overlap. `file` is named in
// the error. Stricter than the format's first reader in three things: a name or key may stand only once, a tensor has
// no other keys than the three of the format, and at most 64 axes.
SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes, std::string_view file);

// The header of these entries in the given order, padded with spaces to a multiple of 8 bytes.
std::string format_safetensors_header(const SafetensorsHeader& header);

bool is_utf8(std::string_view text);

// A name in quotes, escaped and cut so that it fits an error message.
std::string quote_name(std::string_view name);

}  // namespace cadre
