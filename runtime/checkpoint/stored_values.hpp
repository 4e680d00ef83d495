// SPDX-License-Identifier: Apache-2.0
// The numbers of a tensor in a file, whatever it is stored as: F32, F16, BF16, or F8_E4M3 with a scale for each block. A tensor
// `w` [N,K] in fp8 stands beside `w_scale_inv`, F32 [ceil(N/128), ceil(K/128)], maybe in another file; despite its name
// value = code x scale (the files of DeepSeek-V3).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/sharded.hpp"

namespace cadre {

inline constexpr std::string_view kScaleSuffix = "_scale_inv";

// Whether a file's tensor of this name holds the scales of another one.
inline bool is_scale_name(std::string_view name) { return name.ends_with(kScaleSuffix); }

// [ceil(N/128), ceil(K/128)] of a matrix [N,K].
std::vector<int64_t> scale_shape(const std::vector<int64_t>& shape);

// A tensor that can be read; valid as long as the reader it came from.
class StoredValues {
 public:
  // Throws when there is no such tensor, its elements are of another type, or its scales are missing or do not fit.
  StoredValues(ShardedReader& reader, const std::string& directory, std::string_view name);

  const TensorEntry& entry() const { return values_.entry; }
  size_t count() const;
  void read(float* to) const;

 private:
  void find_scales(ShardedReader& reader, const std::string& file);
  void read_fp8(float* to) const;

  MappedTensor values_;
  std::optional<MappedTensor> scales_;  // of fp8
};

}  // namespace cadre
