// SPDX-License-Identifier: Apache-2.0
// A config.json: which keys it may have, and what it means by those that it leaves out.
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <string_view>

#include "comm/base/check.hpp"
#include "layers/model/config_reader.hpp"
#include "layers/model/family.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

using nlohmann::json;

// A config.json must say these; everything else has the default of the architecture.
constexpr std::array<std::string_view, 5> kRequiredKeys = {"hidden_size", "intermediate_size", "num_attention_heads",
                                                           "num_hidden_layers", "vocab_size"};

constexpr std::array<std::string_view, 6> kLatentKeys = {"q_lora_rank",      "kv_lora_rank", "qk_nope_head_dim",
                                                         "qk_rope_head_dim", "v_head_dim",   "rope_interleave"};

constexpr const char* kEosKey = "eos_token_id";
constexpr const char* kExpertWidthKey = "moe_intermediate_size";

// A family without dense layers calls the width of an expert intermediate_size.
void read_expert_width(const json& source, const Family& family, ConfigReader& reader) {
  ModelConfig& config = reader.config();
  if (family.has_dense_layers) return;
  if (!source.contains(kExpertWidthKey)) config.moe_intermediate_size = config.intermediate_size;
  if (config.moe_intermediate_size != config.intermediate_size) {
    reader.refuse(kExpertWidthKey, config.moe_intermediate_size,
                  fmt::format("intermediate_size = {}", config.intermediate_size), "two names of one key");
  }
}

// Keys that the class of the family would not follow, so that the model would be another one there.
void refuse_others(const json& source, const Family& family, const ConfigReader& reader, const ModelConfig& config) {
  if (!family.refuses_other_keys) return;
  const std::vector<std::string> keys = keys_beyond(family, config);
  if (keys.empty()) return;
  const json value = source.contains(keys.front()) ? source[keys.front()] : json();
  reader.refuse(keys.front(), value, fmt::format("what {} computes", family.architecture),
                fmt::format("model_type = cadre_{} names a model that leaves it", family.model_type));
}

// The family that was written under the name of another one.
void take_family(const json& value, const std::string& saved_type, const ConfigReader& reader, ModelConfig& config) {
  const Family* family = value.is_string() ? find_family(value.get_ref<const std::string&>()) : nullptr;
  if (family == nullptr)
    reader.refuse(kFamilyKey, value, fmt::format("{}", fmt::join(model_types(), " | ")), "a family");
  ModelConfig own = config;
  own.model_type = family->model_type;
  if (!family->has_head_dim) own.head_dim = 0;
  if (saved_model_type(own) != saved_type || head_dim(own) != head_dim(config)) {
    reader.refuse(kFamilyKey, value, fmt::format("a family whose models are saved as model_type {}", saved_type),
                  "delete the key: model_type names a family too");
  }
  check(own);
  config = own;
}

// One token, or a list: the first one is also what stands between texts in training.
void read_eos(const json& value, ConfigReader& reader) {
  if (!value.is_array()) return reader.read(kEosKey, value);
  reader.read(kEosKey, json());
  std::vector<int32_t>& more = reader.config().more_eos_token_ids;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_number_integer() || value[i] < 0) {
      reader.refuse(kEosKey, value, "an integer >= 0 or a list of them", "tokens that end a text");
    }
    if (i == 0) {
      reader.read(kEosKey, value[i]);
    } else {
      more.push_back(static_cast<int32_t>(std::min<int64_t>(value[i].get<int64_t>(), 0x7fffffff)));
    }
  }
}

// null where every reader makes the same of mscale and mscale_all_dim.
json attention_factor_of(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.attention_factor > 0.0) return scaling.attention_factor;
  return is_mscale_plain(scaling) ? json() : json(yarn_attention_factor(scaling));
}

json eos_of(const ModelConfig& config) {
  if (config.more_eos_token_ids.empty()) return config.eos_token_id < 0 ? json() : json(config.eos_token_id);
  return end_tokens(config);
}

// Keys that only some families have, at the value that they have where others do not know them.
void write_attention_keys(const Family& family, const ModelConfig& config, json& out) {
  if (!family.has_head_dim) out.erase("head_dim");
  if (family.has_head_dim) out["head_dim"] = head_dim(config);
  if (!family.has_partial_rotary) out.erase("partial_rotary_factor");
  if (family.qk_norm == QkNorm::none) out.erase("use_qk_norm");
  if (!family.has_clip) out.erase("clip_qkv");
  if (family.has_clip && config.clip_qkv == 0.0) out["clip_qkv"] = nullptr;
  if (family.names.shared_gate.empty()) out.erase("shared_expert_intermediate_size");
  if (family.bias_key.empty()) return;
  out[std::string(family.bias_key)] = config.attention_bias;
  out.erase("attention_bias");
}

void write_dense_layers(const Family& family, const ModelConfig& config, json& out) {
  if (family.dense_layers_key == kDenseLayersKey) {
    out[kDenseLayersKey] = json::array();
    for (int64_t layer = 0; layer < config.first_k_dense_replace; ++layer) out[kDenseLayersKey].push_back(layer);
  }
  if (family.dense_layers_key != kLayerTypesKey) return;
  json types = json::array();
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    types.push_back(is_moe_layer(config, layer) ? "sparse" : "dense");
  }
  out[kLayerTypesKey] = types;
}

}  // namespace

ModelConfig model_config_from_json(const json& source, const std::string& where, std::vector<std::string>* unused) {
  CADRE_CHECK(source.is_object(), fmt::format("{}: not a JSON object", where), "expected a Hugging Face config.json");
  ModelConfig config;
  ConfigReader reader(config, where, unused);
  // First, so that the keys of another architecture are not blamed.
  std::string saved_type = config.model_type;
  if (const auto type = source.find("model_type"); type != source.end()) {
    if (type->is_string()) saved_type = *type;
    reader.read("model_type", type->is_string() ? json(model_type_of_saved(saved_type)) : *type);
  }
  config = ModelConfig();
  config.model_type = model_type_of_saved(saved_type);
  const Family& family = family_of(config);
  family.set_defaults(config);
  for (const std::string_view key : kRequiredKeys) {
    CADRE_CHECK(source.contains(std::string(key)), fmt::format("{}: key {} is missing", where, key),
                "expected a Hugging Face config.json");
  }
  std::vector<std::string> others;
  for (const auto& [key, value] : source.items()) {
    if (key == "model_type") continue;
    if (key == kEosKey) {
      read_eos(value, reader);
    } else if (!is_rope_key(key) && reader.has_field(key) && !key.starts_with("rope_scaling.") &&
               (key != "head_dim" || family.has_head_dim)) {
      reader.read(key, value);
    } else if (!is_rope_key(key) && !describes_file(key)) {
      others.push_back(key);
    }
  }
  for (const std::string& key : others) {
    if (!read_foreign_key(source, key, reader)) reader.read_unknown(key, source[key]);
  }
  read_rope(source, reader);
  read_expert_width(source, family, reader);
  fill_defaults(config);
  check(config);
  if (saved_type == family.model_type) refuse_others(source, family, reader, config);
  if (const auto own = source.find(kFamilyKey); own != source.end()) take_family(*own, saved_type, reader, config);
  return config;
}

json to_json(const ModelConfig& config) {
  json out = {{"attention_dropout", 0.0}};
  const bool latent = has_latent_attention(config);
  out["architectures"] = {architecture_name(config)};
  out["torch_dtype"] = "float32";
  out["use_cache"] = true;
  out["rope_scaling"] = nullptr;
  ModelConfig copy = config;
  copy.router.select.plugin = router_plugin(config);
  for (const Field& field : fields_of(copy)) {
    if (!latent && std::ranges::find(kLatentKeys, field.name) != kLatentKeys.end()) continue;
    const json value = std::visit([](const auto& held) { return json(held); }, value_of(field));
    const size_t dot = field.name.find('.');
    if (dot == std::string::npos) {
      out[field.name] = value;
    } else if (config.rope_scaling.type != "none") {
      out[field.name.substr(0, dot)][field.name.substr(dot + 1)] = value;
    }
  }
  out["model_type"] = saved_model_type(config);
  if (model_type_of_saved(out["model_type"]) != config.model_type) out[kFamilyKey] = config.model_type;
  const Family& family = saved_family(config);
  write_attention_keys(family, config, out);
  if (!family.num_experts_key.empty()) out[std::string(family.num_experts_key)] = config.n_routed_experts;
  write_dense_layers(family, config, out);
  // Others know no number for none, and say nothing of what is as usual.
  if (config.rope_scaling.type != "none") out["rope_scaling"]["attention_factor"] = attention_factor_of(config);
  if (config.bos_token_id < 0) out["bos_token_id"] = nullptr;
  out[kEosKey] = eos_of(config);
  out.erase("more_eos_token_ids");
  if (latent && config.q_lora_rank == 0) out["q_lora_rank"] = nullptr;
  return out;
}

}  // namespace cadre
