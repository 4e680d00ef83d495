// SPDX-License-Identifier: Apache-2.0
// Reads and writes safetensors files: 8 bytes of header length, a JSON header, then the bytes of every tensor. Both
// sides move no tensor byte more than needed: the reader maps the file, the writer streams from where the tensors lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/safetensors_header.hpp"

namespace cadre {

// A file that passed every check of the format. Throws an Error that names the file, the tensor and what is wrong.
// Move-only; entries and bytes live as long as the reader.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& path);

  // In the order of their data.
  const std::vector<TensorEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  // nullptr when the file has no tensor of this name.
  const TensorEntry* find(std::string_view name) const;

  // May start at any address when another program wrote the file: copy, do not cast.
  std::span<const std::byte> bytes(const TensorEntry& entry) const { return data_.subspan(entry.begin, entry.bytes()); }

 private:
  MappedFile file_;
  SafetensorsHeader header_;
  std::span<const std::byte> data_;
  std::unordered_map<std::string_view, size_t> index_by_name_;
};

// A tensor to be written; the bytes are the caller's and are only read.
struct TensorSource {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  // empty: a scalar
  std::span<const std::byte> bytes;
};

// Writes the file whole or not at all (see StagedFile). Tensors of wide elements come first, then by name.
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const TensorSource> tensors);

// A model whose tensors lie in one safetensors file or are spread over several with an index, as Hugging Face keeps it:
//   model.safetensors, or
//   model.safetensors.index.json  {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}} and those files.
inline constexpr const char* kIndexFile = "model.safetensors.index.json";
// Or adapters of a model, as PEFT keeps them: this file, and what they are.
inline constexpr const char* kAdapterFile = "adapter_model.safetensors";
inline constexpr const char* kAdapterConfigFile = "adapter_config.json";

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
