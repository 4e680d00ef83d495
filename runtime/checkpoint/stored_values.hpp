// SPDX-License-Identifier: Apache-2.0
// The numbers of a tensor in a file, whatever it is stored as: F32, F16, BF16, or F8_E4M3 with a scale for each block. A tensor
// `w` [N,K] in fp8 stands beside `w_scale_inv`, F32 [ceil(N/128), ceil(K/128)], maybe in another file; despite its name
// value = code x scale (the files of DeepSeek-V3).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layers/model/config.hpp"
#include "runtime/checkpoint/safetensors.hpp"

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
  // To the nearest bf16. Returns whether every value is kept, as that of a bf16 file is.
  bool read_bf16(bf16* to) const;
  // As E4M3 codes with a scale for 128 x 128 values. Of a matrix. Returns whether every value is kept, as that of an fp8 file is.
  bool read_fp8_codes(uint8_t* codes, float* scales) const;
  // After it was read: a rank that loads weights takes memory for them, and not for the files beside.
  void release() const noexcept;

 private:
  void find_scales(ShardedReader& reader, const std::string& file);
  void read_fp8(float* to) const;

  MappedTensor values_;
  std::optional<MappedTensor> scales_;  // of fp8
};

// Tensors that lie in the files of a checkpoint and that its config.json has no place for.

// 3 of "model.layers.3.mlp.gate.weight"; nothing where the name is of no layer.
std::optional<int64_t> layer_of(std::string_view name);

// How many MTP modules of the model have weights in the files: num_nextn_predict_layers, or 0 where they have none. Many
// a config.json speaks of modules that the files do not hold.
int64_t stored_mtp_modules(const std::filesystem::path& checkpoint, const ModelConfig& config);

// The names of tensors that the model does not use, a layer that it does not have as "model.layers.3.*". MTP modules and
// inv_freq, which others compute too, are not among them. Throws where one belongs to what is read, as the bias of a
// projection that has none here: the model would be another one. Not collective; every rank finds the same.
std::vector<std::string> unread_tensors(const std::filesystem::path& checkpoint, const ModelConfig& config);

}  // namespace cadre
