// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/adapter_files.hpp"

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "comm/base/check.hpp"
#include "layers/model/family.hpp"
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

// What PEFT calls the parameter that joins gate_proj and up_proj. It has the rank and the alpha of both.
constexpr const char* kJoinedPattern = R"(.*\.gate_up_proj)";
constexpr int64_t kJoined = 2;

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

// Adds the parameters that join the projections of experts, as PEFT itself does for families of ExpertTargets::renamed.
void name_joined_experts(const ModelConfig& model, const AdapterOptions& options, std::vector<std::string>& parameters,
                         json& config) {
  const std::vector<std::string> of_experts = expert_projections(model);
  if (of_experts.empty() || !model.ffn_gate) return;
  if (contains(options.targets, of_experts.front())) {
    parameters.emplace_back("experts.gate_up_proj");
    config["rank_pattern"][kJoinedPattern] = kJoined * options.rank;
    config["alpha_pattern"][kJoinedPattern] = kJoined * options.alpha;
  }
  if (contains(options.targets, of_experts.back())) parameters.emplace_back("experts.down_proj");
}

bool is_none(const json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return true;
  if (found->is_boolean()) return !found->get<bool>();
  if (found->is_string()) return *found == "none";
  return found->is_structured() && found->empty();
}

bool is_none_or_joined(const json& config, const char* key, const json& of_joined) {
  return is_none(config, key) || config[key] == json{{kJoinedPattern, of_joined}};
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

std::string adapter_config_json(const ModelConfig& model, const AdapterOptions& options, const std::string& base) {
  const ExpertTargets form = family_of(model).expert_targets;
  std::vector<std::string> modules, parameters;
  for (const std::string& target : options.targets) {
    const bool is_dense = contains(dense_projections(model), target);
    if (form != ExpertTargets::named || !is_dense) modules.push_back(target);
    if (form != ExpertTargets::modules && is_dense) parameters.push_back(target + ".weight");
  }
  json config = {{"peft_type", "LORA"},      {"task_type", "CAUSAL_LM"},    {"base_model_name_or_path", base},
                 {"r", options.rank},        {"lora_alpha", options.alpha}, {"lora_dropout", 0.0},
                 {"bias", "none"},           {"fan_in_fan_out", false},     {"inference_mode", true},
                 {"target_modules", modules}};
  if (form == ExpertTargets::named) name_joined_experts(model, options, parameters, config);
  config["target_parameters"] = parameters;
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
    rank_ = config.at("r").get<int64_t>();
    const auto alpha = config.at("lora_alpha").get<double>();
    scale_ = alpha / static_cast<double>(rank_);
    const auto refuse_unless = [&](bool good, const char* key) {
      CADRE_CHECK(good, fmt::format("{}: {} = {} is not supported", file.string(), key, config[key].dump()),
                  kOtherAdapters);
    };
    for (const char* key : {"use_rslora", "use_dora", "fan_in_fan_out", "bias", "lora_bias", "modules_to_save",
                            "trainable_token_indices", "layer_replication"}) {
      refuse_unless(is_none(config, key), key);
    }
    refuse_unless(is_none_or_joined(config, "rank_pattern", kJoined * rank_), "rank_pattern");
    refuse_unless(is_none_or_joined(config, "alpha_pattern", kJoined * alpha), "alpha_pattern");
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
