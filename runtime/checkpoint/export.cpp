// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/export.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <vector>

#include "comm/base/check.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/model/adapter.hpp"
#include "runtime/checkpoint/adapter_files.hpp"
#include "runtime/checkpoint/companion_files.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

// The selection bias decides by small differences; DeepSeek's files have it in F32 too.
constexpr std::string_view kRouterBias = ".e_score_correction_bias";

// A tensor of the new file and its bytes.
struct Converted {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

template <class T>
std::vector<std::byte> bytes_of_elements(const std::vector<T>& elements) {
  std::vector<std::byte> bytes(elements.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

Converted as_fp32(const TensorEntry& entry, const std::vector<float>& values) {
  return {entry.name, DType::f32, entry.shape, bytes_of_elements(values)};
}

Converted as_bf16(const TensorEntry& entry, const std::vector<float>& values) {
  std::vector<bf16> rounded(values.size());
  std::ranges::transform(values, rounded.begin(), to_bf16);
  return {entry.name, DType::bf16, entry.shape, bytes_of_elements(rounded)};
}

// The codes and their scales.
std::vector<Converted> as_fp8(const TensorEntry& entry, const std::vector<float>& values, Fp8Scale kind) {
  const std::vector<int64_t> blocks = scale_shape(entry.shape);
  std::vector<float> multiples(values.size());
  std::vector<float> scales(static_cast<size_t>(blocks[0] * blocks[1]));
  round_blocks_to_fp8(values.data(), entry.shape[0], entry.shape[1], kind, multiples.data(), scales.data());
  std::vector<uint8_t> codes(values.size());
  std::ranges::transform(multiples, codes.begin(), to_fp8);
  return {{entry.name, DType::fp8, entry.shape, bytes_of_elements(codes)},
          {entry.name + std::string(kScaleSuffix), DType::f32, blocks, bytes_of_elements(scales)}};
}

class Export {
 public:
  Export(const fs::path& checkpoint, const fs::path& out, ExportFormat format, Fp8Scale scale, ExportMtp mtp,
         const fs::path& adapter)
      : checkpoint_(checkpoint), out_(out), format_(format), scale_(scale), mtp_(mtp), reader_(checkpoint) {
    if (!adapter.empty()) adapter_.emplace(adapter);
    if (adapter_ && fs::exists(adapter / kRunFile)) trained_ = load_run_config((adapter / kRunFile).string(), {});
    if (mtp == ExportMtp::drop) num_layers_ = read_model_config(checkpoint).num_hidden_layers;
  }

  ExportSummary run() {
    std::set<std::string> files;
    for (const auto& [name, file] : reader_.weight_map()) files.insert(file);
    for (const std::string& file : files) write_file(file);
    write_index(out_, weight_map_, summary_.bytes);
    copy_small_files(files);
    write_config();
    if (trained_) write_run_file();
    return summary_;
  }

 private:
  // The tensors of one old file, in a new one of its name. Scales come with their weights, wherever they were.
  void write_file(const std::string& file) {
    std::vector<Converted> tensors;
    for (const auto& [name, owner] : reader_.weight_map()) {
      if (owner == file && !is_scale_name(name) && !is_dropped(name)) convert(name, tensors);
    }
    if (tensors.empty()) return;
    std::vector<TensorSource> sources;
    for (const Converted& tensor : tensors) {
      sources.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.bytes});
      weight_map_.emplace(tensor.name, file);
      summary_.bytes += tensor.bytes.size();
    }
    write_safetensors(out_ / file, sources);
  }

  bool is_dropped(const std::string& name) const {
    return mtp_ == ExportMtp::drop && layer_of(name).value_or(-1) >= num_layers_;
  }

  void convert(const std::string& name, std::vector<Converted>& tensors) {
    const StoredValues stored(reader_, checkpoint_.string(), name);
    std::vector<float> values(stored.count());
    stored.read(values.data());
    const TensorEntry& entry = stored.entry();
    if (adapter_ && entry.shape.size() == 2) adapter_->merge(name, entry.shape[0], entry.shape[1], values.data());
    ++summary_.tensors;
    if (format_ == ExportFormat::fp32 || name.ends_with(kRouterBias)) {
      tensors.push_back(as_fp32(entry, values));
    } else if (format_ == ExportFormat::fp8 && is_fp8_weight(name, entry.shape.size())) {
      ++summary_.fp8_tensors;
      std::ranges::move(as_fp8(entry, values, scale_), std::back_inserter(tensors));
    } else {
      tensors.push_back(as_bf16(entry, values));
    }
  }

  // Tokenizers and the like. cadre.json holds checksums of other files.
  void copy_small_files(const std::set<std::string>& weights) const {
    for (const auto& item : fs::directory_iterator(checkpoint_)) {
      const std::string name = item.path().filename().string();
      const bool written = weights.contains(name) || name == kConfigFile || name == kIndexFile || name == kManifestFile;
      if (item.is_regular_file() && !written) fs::copy_file(item.path(), out_ / name);
      if (item.is_directory() && name == kMoreTemplatesFolder) fs::copy(item.path(), out_ / name);
    }
    if (fs::exists(out_ / kGenerationConfigFile)) return;
    write_text_file(out_ / kGenerationConfigFile, generation_config_of(read_json_file(checkpoint_ / kConfigFile)));
  }

  // How the adapters were trained: the chat format, the data that eval takes.
  void write_run_file() const {
    RunConfig config = *trained_;
    config.model = read_model_config(out_);
    config.adapter = {};
    config.train.init.clear();
    write_text_file(out_ / kRunFile, to_toml(config));
  }

  // The token that ended answers in the run of the adapters, where the model has none.
  void add_end_token(nlohmann::json& config) const {
    if (!trained_ || trained_->model.eos_token_id < 0 || !config.value("eos_token_id", nlohmann::json()).is_null())
      return;
    config["eos_token_id"] = trained_->model.eos_token_id;
    const fs::path file = out_ / kGenerationConfigFile;
    write_text_file(file, generation_config_of(trained_->model, read_json_file(file).dump()));
  }

  void write_config() const {
    nlohmann::json config = read_json_file(checkpoint_ / kConfigFile);
    // transformers 5 reads dtype and older ones torch_dtype.
    config["dtype"] = config["torch_dtype"] = format_ == ExportFormat::fp32 ? "float32" : "bfloat16";
    if (mtp_ == ExportMtp::drop) {
      config.erase("num_mtp_layers");
      config["num_nextn_predict_layers"] = 0;
    }
    add_end_token(config);
    config.erase("quantization_config");
    if (format_ == ExportFormat::fp8) {
      nlohmann::json quantization = {{"activation_scheme", "dynamic"},
                                     {"fmt", "e4m3"},
                                     {"quant_method", "fp8"},
                                     {"weight_block_size", {kFp8TileChannels, kFp8TileChannels}}};
      if (scale_ == Fp8Scale::ue8m0) quantization["scale_fmt"] = "ue8m0";
      config["quantization_config"] = quantization;
    }
    write_text_file(out_ / kConfigFile, config.dump(2) + "\n");
  }

  fs::path checkpoint_;
  fs::path out_;
  ExportFormat format_;
  Fp8Scale scale_;
  ExportMtp mtp_;
  int64_t num_layers_ = 0;
  ShardedReader reader_;
  std::optional<StoredAdapter> adapter_;
  std::optional<RunConfig> trained_;  // the run of the adapters
  WeightMap weight_map_;
  ExportSummary summary_;
};

}  // namespace

bool is_fp8_weight(const std::string& name, size_t num_dims) {
  const bool of_expert = name.find(".experts.") != std::string::npos && !name.ends_with(".gate.weight");
  return num_dims == 2 && (of_expert || is_projection(name));
}

ExportSummary export_checkpoint(const fs::path& checkpoint, const fs::path& out, ExportFormat format, Fp8Scale scale,
                                ExportMtp mtp, const fs::path& adapter) {
  CADRE_CHECK(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out)),
              fmt::format("{} is there already", out.string()), "name a directory that is to be made");
  if (fs::exists(checkpoint / kManifestFile)) verify_checkpoint(checkpoint, Verify::full);
  std::error_code error;
  fs::create_directories(out, error);
  CADRE_CHECK(!error, fmt::format("cannot make {}: {}", out.string(), error.message()), "is its parent writable?");
  return Export(checkpoint, out, format, scale, mtp, adapter).run();
}

}  // namespace cadre
