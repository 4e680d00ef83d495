// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/model_checkpoint.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>

#include "comm/wire/fp8.hpp"
#include "layers/tensor/tensor.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/checkpoint/stored_values.hpp"

namespace cadre {
namespace {

// `whole` has the shape of the parameter.
void append_parts(const Parameter& parameter, const Tensor& whole, std::string_view suffix,
                  std::vector<NamedTensor>& tensors) {
  for (const ParameterPart& part : parameter.parts) {
    tensors.push_back({fmt::format("{}{}", part.name, suffix), whole.rows(part.first_row, part.num_rows)});
  }
}

}  // namespace

std::vector<NamedTensor> name_values(const ParameterStore& store, const ParameterChoice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : store.parameters()) {
    if (chosen(*parameter)) append_parts(*parameter, parameter->value, "", tensors);
  }
  return tensors;
}

std::vector<NamedTensor> name_scales(const ParameterStore& store, const ParameterChoice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : store.parameters()) {
    if (!chosen(*parameter) || !parameter->scales.defined()) continue;
    int64_t block = 0;
    for (const ParameterPart& part : parameter->parts) {
      const int64_t blocks = (part.num_rows + kFp8TileChannels - 1) / kFp8TileChannels;
      tensors.push_back({part.name + std::string(kScaleSuffix), parameter->scales.rows(block, blocks)});
      block += blocks;
    }
  }
  return tensors;
}

std::vector<NamedTensor> name_copies(const ParameterStore& store, const ParameterChoice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : store.parameters()) {
    if (!chosen(*parameter)) continue;
    for (const std::string& name : parameter->copies) tensors.push_back({name, parameter->value});
  }
  return tensors;
}

std::vector<NamedTensor> name_moments(const Optimizer& optimizer, const ParameterChoice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const Optimizer::Moments& moments : optimizer.moments()) {
    if (!chosen(*moments.parameter)) continue;
    if (moments.are_of_muon()) {
      append_parts(*moments.parameter, moments.first, ".momentum", tensors);
      continue;
    }
    append_parts(*moments.parameter, moments.first, ".exp_avg", tensors);
    append_parts(*moments.parameter, moments.second, ".exp_avg_sq", tensors);
  }
  return tensors;
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int axis = 0; axis < tensor.num_dims(); ++axis) shape.push_back(tensor.dim(axis));
  return shape;
}

namespace {

namespace fs = std::filesystem;

// Tensors of one folder on their way into memory. The constructor checks all of them, copy() cannot fail.
class TensorLoad {
 public:
  // `folder` is relative to the checkpoint. Without a manifest the files are not verified.
  TensorLoad(const fs::path& checkpoint, const std::string& folder, const Manifest* manifest,
             const std::vector<NamedTensor>& tensors, const std::vector<NamedTensor>& scales = {})
      : reader_(checkpoint / folder) {
    if (manifest != nullptr) verify_files(checkpoint, folder, *manifest, tensors);
    std::map<std::string, Tensor> scales_of;
    for (const auto& [name, memory] : scales) scales_of[name] = memory;
    for (const auto& [name, memory] : tensors) {
      if (manifest != nullptr && !reader_.weight_map().contains(name)) {
        throw Misfit(ErrorKind::input,
                     fmt::format("{} holds no tensor {}", (checkpoint / folder).string(), quote_name(name)),
                     "does the configuration describe this model?");
      }
      const StoredValues source(reader_, (checkpoint / folder).string(), name);
      check(checkpoint / folder, source.entry(), memory);
      copies_.push_back({source, memory, scales_of[name + std::string(kScaleSuffix)]});
    }
  }

  // Returns whether every value is kept.
  bool copy(Memory& memory) const {
    bool keeps_all = true;
    for (const auto& [source, tensor, scales] : copies_) {
      OnHost to(tensor, memory);
      switch (tensor.dtype()) {
        case DType::f32: source.read(to->data<float>()); break;
        case DType::bf16: keeps_all &= source.read_bf16(to->data<bf16>()); break;
        default: keeps_all &= source.read_fp8_codes(reinterpret_cast<uint8_t*>(to->raw()), scales.data<float>());
      }
      to.put_back();
      source.release();
    }
    return keeps_all;
  }

 private:
  struct Copy {
    StoredValues source;
    Tensor memory;
    Tensor scales;
  };

  // The files that hold the tensors, before they are looked into.
  void verify_files(const fs::path& checkpoint, const std::string& folder, const Manifest& manifest,
                    const std::vector<NamedTensor>& tensors) const {
    std::set<std::string> files;
    for (const NamedTensor& tensor : tensors) {
      for (const std::string& name : {tensor.name, tensor.name + std::string(kScaleSuffix)}) {
        const auto found = reader_.weight_map().find(name);
        if (found != reader_.weight_map().end()) files.insert((fs::path(folder) / found->second).generic_string());
      }
    }
    for (const std::string& file : files) {
      const auto known = manifest.files.find(file);
      CADRE_CHECK(known != manifest.files.end(),
                  fmt::format("{} does not know the file {}", (checkpoint / kManifestFile).string(), file),
                  "files were added to the checkpoint by hand: remove them");
      verify_file(checkpoint, file, known->second, Verify::full);
    }
  }

  void check(const fs::path& directory, const TensorEntry& entry, const Tensor& memory) const {
    const fs::path file = directory / reader_.weight_map().find(entry.name)->second;
    if (entry.shape != shape_of(memory)) {
      throw Misfit(ErrorKind::input,
                   fmt::format("{}: tensor {} has shape [{}], expected [{}]", file.string(), quote_name(entry.name),
                               fmt::join(entry.shape, ","), fmt::join(shape_of(memory), ",")),
                   "does the configuration describe this model?");
    }
  }

  ShardedReader reader_;
  std::vector<Copy> copies_;
};

// The manifest, once all files have their length and those that are small their checksum too.
std::optional<Manifest> read_verified_manifest(const fs::path& directory) {
  if (!fs::exists(directory / kManifestFile)) return std::nullopt;
  Manifest manifest = read_manifest(directory);
  for (const auto& [name, digest] : manifest.files) {
    const bool has_tensors = fs::path(name).extension() == ".safetensors";
    verify_file(directory, name, digest, has_tensors ? Verify::lengths : Verify::full);
  }
  return manifest;
}

}  // namespace

Manifest load_checkpoint(const fs::path& directory, const ParameterStore& store, Optimizer* optimizer,
                         const ParameterChoice& chosen, bool* rounds) {
  CADRE_CHECK(fs::is_directory(directory), fmt::format("{} is not a directory", directory.string()),
              "name the directory of a checkpoint, such as RUN/step_00000100 or RUN/latest");
  const std::optional<Manifest> manifest = read_verified_manifest(directory);
  CADRE_CHECK(
      manifest || optimizer == nullptr,
      fmt::format("{} has no {}: training cannot go on from it", directory.string(), kManifestFile),
      fmt::format("only a checkpoint that Cadre wrote holds the state of the optimiser; train.init={} starts a new run "
                  "from these weights",
                  directory.string()));

  const Manifest* known = manifest ? &*manifest : nullptr;
  const TensorLoad values(directory, "", known, name_values(store, chosen), name_scales(store, chosen));
  std::optional<TensorLoad> moments;
  if (optimizer != nullptr) moments.emplace(directory, kOptimizerFolder, known, name_moments(*optimizer, chosen));

  const bool keeps_all = values.copy(store.memory());
  if (rounds != nullptr) *rounds = !keeps_all;
  if (moments) moments->copy(store.memory());
  for (Parameter* parameter : store.parameters()) ++parameter->version;
  return manifest.value_or(Manifest{});
}

ModelConfig read_model_config(const fs::path& path, std::vector<std::string>* unused) {
  const fs::path file = fs::is_directory(path) ? path / kConfigFile : path;
  return model_config_from_json(read_json_file(file), file.string(), unused);
}

}  // namespace cadre
