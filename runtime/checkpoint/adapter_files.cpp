// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/adapter_files.hpp"

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "layers/model/family.hpp"
#include "layers/tensor/tensor.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/checkpoint/stored_values.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kAdapterPrefix = "base_model.model.";
constexpr const char* kOtherAdapters = "Cadre reads LoRA without rslora, dora, patterns, biases and modules_to_save";

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

// values [rows,columns] += scale b a, with a [rank,columns] and b [rows,rank].
void add_product(const std::vector<float>& a, const std::vector<float>& b, int64_t rank, double scale, int64_t rows,
                 int64_t columns, float* values) {
  std::vector<double> sum(static_cast<size_t>(columns));
  for (int64_t row = 0; row < rows; ++row) {
    std::ranges::fill(sum, 0.0);
    for (int64_t k = 0; k < rank; ++k) {
      const double factor = scale * static_cast<double>(b[static_cast<size_t>(row * rank + k)]);
      const float* from = a.data() + k * columns;
      for (int64_t i = 0; i < columns; ++i) sum[static_cast<size_t>(i)] += factor * static_cast<double>(from[i]);
    }
    float* to = values + row * columns;
    for (int64_t i = 0; i < columns; ++i)
      to[i] = static_cast<float>(static_cast<double>(to[i]) + sum[static_cast<size_t>(i)]);
  }
}

bool has_weight_below(const ShardedReader& model, const std::string& prefix) {
  const auto found = model.weight_map().lower_bound(prefix);
  return found != model.weight_map().end() && found->first.starts_with(prefix);
}

// Whether a tensor of adapters belongs to a weight of the model, or to the experts of a layer together.
bool belongs_to(const ShardedReader& model, const std::string& tensor) {
  if (const auto weight = adapted_weight(tensor); weight && model.weight_map().contains(*weight)) return true;
  const std::optional<std::string> experts = joined_experts_in(tensor);
  if (!experts) return false;
  std::string of_mixtral = *experts;
  if (const size_t mlp = of_mixtral.find(".mlp."); mlp != std::string::npos)
    of_mixtral.replace(mlp, 5, ".block_sparse_moe.");
  return has_weight_below(model, *experts) || has_weight_below(model, of_mixtral);
}

constexpr std::string_view kPeftPrefix = "base_model.model.";
constexpr std::string_view kExperts = ".experts.";
constexpr std::string_view kMixtureOfMixtral = ".block_sparse_moe";  // .mlp in transformers 5

constexpr std::pair<std::string_view, ExpertWeight::Kind> kKinds[] = {
    {"gate_proj.weight", ExpertWeight::Kind::gate}, {"w1.weight", ExpertWeight::Kind::gate},
    {"up_proj.weight", ExpertWeight::Kind::up},     {"w3.weight", ExpertWeight::Kind::up},
    {"down_proj.weight", ExpertWeight::Kind::down}, {"w2.weight", ExpertWeight::Kind::down}};

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
    gate_up_rank_ = is_none(config, "rank_pattern") ? rank_ : kJoined * rank_;
    joins_gate_up_ = config.value("target_parameters", json()).dump().find("gate_up_proj") != std::string::npos;
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
    CADRE_CHECK(belongs_to(model, name),
                fmt::format("{}: the tensor {} belongs to no weight of {}", (directory_ / file).string(),
                            quote_name(name), base.string()),
                adapted_weight(name) ? "are these adapters of another model?" : kOtherAdapters);
  }
}

std::vector<float> StoredAdapter::read(const std::string& name, const std::vector<int64_t>& shape) {
  const StoredValues stored(reader_, directory_.string(), name);
  CADRE_CHECK(stored.entry().shape == shape,
              fmt::format("{}: tensor {} has shape [{}], expected [{}]", directory_.string(), name,
                          fmt::join(stored.entry().shape, ","), fmt::join(shape, ",")),
              "are these adapters of another model?");
  return floats_of(stored);
}

bool StoredAdapter::has(const std::string& weight) const { return has_own(weight) || joined_name(weight).has_value(); }

bool StoredAdapter::has_own(const std::string& weight) const {
  if (!weight.ends_with(".weight")) return false;
  const WeightMap& names = reader_.weight_map();
  return names.contains(adapter_name(weight, 'A')) || names.contains(adapter_name(weight, 'B'));
}

bool StoredAdapter::has_joined_experts() const {
  return std::ranges::any_of(reader_.weight_map(),
                             [](const auto& entry) { return joined_experts_in(entry.first).has_value(); });
}

std::optional<std::string> StoredAdapter::joined_name(const std::string& weight) const {
  const std::optional<ExpertWeight> expert = expert_weight(weight);
  if (!expert) return std::nullopt;
  const bool is_down = expert->kind == ExpertWeight::Kind::down;
  const auto holds = [&](const std::string& stem) { return reader_.weight_map().contains(stem + ".lora_A.weight"); };
  const std::string inner = expert->layer + ".base_layer";
  if (holds(inner)) return is_down ? expert->layer : inner;
  if (holds(expert->layer) && is_down != joins_gate_up_) return expert->layer;
  return std::nullopt;
}

bool StoredAdapter::merge_joined(const std::string& weight, int64_t rows, int64_t columns, float* values) {
  const std::optional<std::string> stem = joined_name(weight);
  if (!stem) return false;
  const ExpertWeight expert = *expert_weight(weight);
  const bool is_down = expert.kind == ExpertWeight::Kind::down;
  const int64_t rank = is_down ? rank_ : gate_up_rank_;
  if (joined_.name != *stem) {
    const int64_t all = StoredValues(reader_, directory_.string(), *stem + ".lora_A.weight").entry().shape.at(0);
    joined_ = {*stem, all / rank, read(*stem + ".lora_A.weight", {all / rank * rank, columns}),
               read(*stem + ".lora_B.weight", {is_down ? rows : 2 * rows, all / rank * rank})};
  }
  CADRE_CHECK(expert.expert < joined_.num_experts,
              fmt::format("{}: {} has adapters of {} experts, {} is another one", directory_.string(), *stem,
                          joined_.num_experts, weight),
              "are these adapters of another model?");
  const int64_t first_row = expert.kind == ExpertWeight::Kind::up ? rows : 0;
  const ExpertMatrices of_expert =
      matrices_of(joined_.a, joined_.b, expert.expert, joined_.num_experts, rank, columns, first_row, rows);
  add_product(of_expert.a, of_expert.b, rank, scale_, rows, columns, values);
  return true;
}

bool StoredAdapter::merge(const std::string& weight, int64_t rows, int64_t columns, float* values) {
  if (!has_own(weight)) return merge_joined(weight, rows, columns, values);
  const std::vector<float> a = read(adapter_name(weight, 'A'), {rank_, columns});
  const std::vector<float> b = read(adapter_name(weight, 'B'), {rows, rank_});
  add_product(a, b, rank_, scale_, rows, columns, values);
  return true;
}

void StoredAdapter::merge(const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    if (parameter->value.num_dims() != 2) continue;
    for (const ParameterPart& part : parameter->parts) {
      if (!has(part.name)) continue;
      OnHost rows(parameter->value.rows(part.first_row, part.num_rows), store.memory());
      merge(part.name, part.num_rows, rows->dim(1), rows->data<float>());
      rows.put_back();
    }
    ++parameter->version;
  }
}

std::optional<ExpertWeight> expert_weight(std::string_view name) {
  const size_t experts = name.find(kExperts);
  if (experts == std::string_view::npos) return std::nullopt;
  std::string layer(name.substr(0, experts));
  if (layer.ends_with(kMixtureOfMixtral))
    layer.replace(layer.size() - kMixtureOfMixtral.size(), std::string::npos, ".mlp");
  ExpertWeight weight = {std::string(kPeftPrefix) + layer + ".experts"};
  name.remove_prefix(experts + kExperts.size());
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), weight.expert);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  name.remove_prefix(static_cast<size_t>(end - name.data()) + 1);
  for (const auto& [last, kind] : kKinds) {
    if (name != last) continue;
    weight.kind = kind;
    return weight;
  }
  return std::nullopt;
}

std::optional<std::string> joined_experts_in(std::string_view tensor) {
  if (!tensor.starts_with(kPeftPrefix)) return std::nullopt;
  tensor.remove_prefix(kPeftPrefix.size());
  for (const std::string_view end : {".lora_A.weight", ".lora_B.weight"}) {
    if (!tensor.ends_with(end)) continue;
    tensor.remove_suffix(end.size());
    if (tensor.ends_with(".base_layer")) tensor.remove_suffix(std::string_view(".base_layer").size());
    if (tensor.ends_with(".experts")) return std::string(tensor) + ".";
  }
  return std::nullopt;
}

ExpertMatrices matrices_of(const std::vector<float>& a, const std::vector<float>& b, int64_t expert,
                           int64_t num_experts, int64_t rank, int64_t width, int64_t first_row, int64_t num_rows) {
  ExpertMatrices matrices;
  const auto begin = a.begin() + expert * rank * width;
  matrices.a.assign(begin, begin + rank * width);
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    for (int64_t k = 0; k < rank; ++k) {
      matrices.b.push_back(b[static_cast<size_t>((row * rank + k) * num_experts + expert)]);
    }
  }
  return matrices;
}

}  // namespace cadre
