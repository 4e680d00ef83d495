// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/adapter_files.hpp"

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <optional>
#include <vector>

#include "comm/base/check.hpp"
#include "layers/tensor/on_host.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/stored_values.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kAdapterPrefix = "base_model.model.";
constexpr const char* kOtherAdapters =
    "Cadre reads LoRA without rslora, dora, patterns, biases and modules_to_save; experts have names of their own";

bool is_none(const json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return true;
  if (found->is_boolean()) return !found->get<bool>();
  if (found->is_string()) return *found == "none";
  return found->is_structured() && found->empty();
}

// "model.layers.0.self_attn.o_proj.weight" of a tensor's name; nothing where it is no name of an adapter.
std::optional<std::string> adapted_weight(std::string_view name) {
  for (const std::string_view suffix : {".lora_A.weight", ".lora_B.weight"}) {
    if (!name.starts_with(kAdapterPrefix) || !name.ends_with(suffix)) continue;
    name.remove_prefix(kAdapterPrefix.size());
    name.remove_suffix(suffix.size());
    return std::string(name) + ".weight";
  }
  return std::nullopt;
}

std::vector<float> floats_of(const StoredValues& stored) {
  std::vector<float> values(stored.count());
  stored.read(values.data());
  return values;
}

}  // namespace

std::string adapter_config_json(const AdapterOptions& options, const std::string& base) {
  // The projections of dense networks and shared experts, once more as parameters: where experts are one tensor PEFT moves
  // all targets of these names there.
  std::vector<std::string> parameters;
  for (const std::string& target : options.targets) {
    if (target == "gate_proj" || target == "up_proj" || target == "down_proj") parameters.push_back(target + ".weight");
  }
  const json config = {{"peft_type", "LORA"},
                       {"task_type", "CAUSAL_LM"},
                       {"base_model_name_or_path", base},
                       {"r", options.rank},
                       {"lora_alpha", options.alpha},
                       {"lora_dropout", 0.0},
                       {"bias", "none"},
                       {"fan_in_fan_out", false},
                       {"inference_mode", true},
                       {"target_modules", options.targets},
                       {"target_parameters", parameters}};
  return config.dump(2) + "\n";
}

bool is_adapter(const fs::path& directory) {
  std::error_code none;
  return fs::exists(directory / kAdapterConfigFile, none) && weights_in(directory).empty();
}

StoredAdapter::StoredAdapter(const fs::path& directory) : directory_(directory), reader_(directory) {
  const fs::path file = directory / kAdapterConfigFile;
  const json config = read_json_file(file);
  try {
    const bool is_lora = config.at("peft_type") == "LORA";
    CADRE_CHECK(is_lora, fmt::format("{}: peft_type = {}, allowed: LORA", file.string(), config.at("peft_type").dump()),
                kOtherAdapters);
    for (const char* key : {"use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "bias",
                            "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication"}) {
      CADRE_CHECK(is_none(config, key),
                  fmt::format("{}: {} = {} is not supported", file.string(), key, config[key].dump()), kOtherAdapters);
    }
    rank_ = config.at("r").get<int64_t>();
    scale_ = config.at("lora_alpha").get<double>() / static_cast<double>(rank_);
    if (!is_none(config, "base_model_name_or_path")) base_ = config.at("base_model_name_or_path").get<std::string>();
  } catch (const json::exception& error) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", file.string(), error.what()), kOtherAdapters);
  }
  CADRE_CHECK(rank_ >= 1 && std::isfinite(scale_),
              fmt::format("{}: r = {}, allowed: integer >= 1", file.string(), rank_));
  if (fs::exists(directory / kManifestFile)) {
    const Manifest manifest = read_manifest(directory);
    for (const char* name : {kAdapterFile, kAdapterConfigFile}) {
      const auto known = manifest.files.find(name);
      if (known != manifest.files.end()) verify_file(directory, name, known->second, Verify::full);
    }
  }
}

void StoredAdapter::check_base(const fs::path& base) const {
  const ShardedReader model(base);
  for (const auto& [name, file] : reader_.weight_map()) {
    const std::optional<std::string> weight = adapted_weight(name);
    CADRE_CHECK(weight && model.weight_map().contains(*weight),
                fmt::format("{}: the tensor {} belongs to no weight of {}", (directory_ / file).string(),
                            quote_name(name), base.string()),
                weight && name.find(".experts.base_layer.") == std::string::npos
                    ? "are these adapters of another model?"
                    : kOtherAdapters);
  }
}

bool StoredAdapter::merge(const std::string& weight, int64_t rows, int64_t columns, float* values) {
  if (!weight.ends_with(".weight")) return false;
  const std::string names[] = {adapter_name(weight, 'A'), adapter_name(weight, 'B')};
  if (!reader_.weight_map().contains(names[0]) && !reader_.weight_map().contains(names[1])) return false;
  const StoredValues a(reader_, directory_.string(), names[0]);
  const StoredValues b(reader_, directory_.string(), names[1]);
  const std::vector<int64_t> wanted[] = {{rank_, columns}, {rows, rank_}};
  for (int i = 0; i < 2; ++i) {
    const std::vector<int64_t>& shape = (i == 0 ? a : b).entry().shape;
    CADRE_CHECK(shape == wanted[i],
                fmt::format("{}: tensor {} has shape [{}], expected [{}]", directory_.string(), names[i],
                            fmt::join(shape, ","), fmt::join(wanted[i], ",")),
                "are these adapters of another model?");
  }
  const std::vector<float> a_values = floats_of(a);
  const std::vector<float> b_values = floats_of(b);
  std::vector<double> sum(static_cast<size_t>(columns));
  for (int64_t row = 0; row < rows; ++row) {
    std::ranges::fill(sum, 0.0);
    for (int64_t k = 0; k < rank_; ++k) {
      const double factor = scale_ * static_cast<double>(b_values[static_cast<size_t>(row * rank_ + k)]);
      const float* from = a_values.data() + k * columns;
      for (int64_t i = 0; i < columns; ++i) sum[static_cast<size_t>(i)] += factor * static_cast<double>(from[i]);
    }
    float* to = values + row * columns;
    for (int64_t i = 0; i < columns; ++i)
      to[i] = static_cast<float>(static_cast<double>(to[i]) + sum[static_cast<size_t>(i)]);
  }
  return true;
}

void StoredAdapter::merge(const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    if (parameter->value.num_dims() != 2) continue;
    for (const ParameterPart& part : parameter->parts) {
      if (!reader_.weight_map().contains(adapter_name(part.name, 'A'))) continue;
      OnHost rows(parameter->value.rows(part.first_row, part.num_rows), store.memory());
      merge(part.name, part.num_rows, rows->dim(1), rows->data<float>());
      rows.put_back();
    }
    ++parameter->version;
  }
}

}  // namespace cadre
