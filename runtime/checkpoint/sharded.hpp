// SPDX-License-Identifier: Apache-2.0
// A model whose tensors lie in one safetensors file or are spread over several with an index, as Hugging Face keeps it:
//   model.safetensors, or
//   model.safetensors.index.json  {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}} and those files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "runtime/checkpoint/safetensors.hpp"

namespace cadre {

inline constexpr const char* kIndexFile = "model.safetensors.index.json";

// Tensor name -> name of the file that holds it.
using WeightMap = std::map<std::string, std::string, std::less<>>;

// One tensor in its mapped file; valid as long as the reader it came from.
struct MappedTensor {
  const TensorEntry& entry;
  std::span<const std::byte> bytes;
};

// A file is mapped and checked when its first tensor is asked for, so that a rank touches only what it loads. That the
// files exist and lie inside the directory is checked at once. One thread at a time.
class ShardedReader {
 public:
  explicit ShardedReader(std::filesystem::path directory);

  const WeightMap& weight_map() const { return weight_map_; }

  std::optional<MappedTensor> find(std::string_view name);
  MappedTensor at(std::string_view name);  // throws when there is no such tensor

 private:
  void read_index(const std::filesystem::path& path);
  const SafetensorsReader& shard(const std::string& file);

  std::filesystem::path directory_;
  WeightMap weight_map_;
  std::map<std::string, SafetensorsReader> shards_;  // mapped so far
};

// The name of a file that holds the weights of a Hugging Face model in this directory, or of their index; "" without one.
std::string weights_in(const std::filesystem::path& directory);

// Writes model.safetensors.index.json. `total_bytes` is the sum over all tensors.
FileDigest write_index(const std::filesystem::path& directory, const WeightMap& weight_map, uint64_t total_bytes);

}  // namespace cadre
