// SPDX-License-Identifier: Apache-2.0
// A config.json: which keys it may have, and what it means by those that it leaves out.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <string_view>

#include "comm/base/check.hpp"
#include "layers/model/architecture.hpp"
#include "layers/model/config_reader.hpp"

namespace cadre {
namespace {

using nlohmann::json;

// A config.json must say these; everything else has the default of the architecture.
constexpr std::array<std::string_view, 5> kRequiredKeys = {"hidden_size", "intermediate_size", "num_attention_heads",
                                                           "num_hidden_layers", "vocab_size"};

constexpr std::array<std::string_view, 6> kLatentKeys = {"q_lora_rank",      "kv_lora_rank", "qk_nope_head_dim",
                                                         "qk_rope_head_dim", "v_head_dim",   "rope_interleave"};

constexpr const char* kEosKey = "eos_token_id";

// What a config.json of that architecture means by the keys it leaves out.
ModelConfig architecture_defaults(const std::string& saved_type) {
  ModelConfig config;
  config.model_type = model_type_of_saved(saved_type);
  if (saved_type == "glm4_moe") {
    config.max_position_embeddings = 131072;
    config.rms_norm_eps = 1e-5;
    config.num_key_value_heads = 8;
    config.scoring_func = ScoreFunction::sigmoid;
    config.topk_method = TopkMethod::noaux_tc;
    config.norm_topk_prob = true;
    config.n_routed_experts = 128;
    config.n_shared_experts = 1;
    config.num_experts_per_tok = 8;
    config.moe_intermediate_size = 1408;
    config.first_k_dense_replace = 1;
  }
  if (!has_latent_attention(config)) return config;
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  if (config.model_type == "deepseek_v2") {
    config.bos_token_id = 1;
    config.eos_token_id = 2;
    config.n_routed_experts = 64;
    config.n_shared_experts = 2;
    config.moe_intermediate_size = 1407;
    return config;
  }
  config.bos_token_id = 0;
  config.eos_token_id = 1;
  config.max_position_embeddings = 4096;
  config.n_routed_experts = 256;
  config.num_experts_per_tok = 8;
  config.moe_intermediate_size = 2048;
  config.first_k_dense_replace = 3;
  config.scoring_func = ScoreFunction::sigmoid;
  config.topk_method = TopkMethod::noaux_tc;
  config.n_group = 8;
  config.topk_group = 4;
  config.norm_topk_prob = true;
  config.routed_scaling_factor = 2.5;
  config.n_shared_experts = 1;
  return config;
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
  config = architecture_defaults(saved_type);
  for (const std::string_view key : kRequiredKeys) {
    CADRE_CHECK(source.contains(std::string(key)), fmt::format("{}: key {} is missing", where, key),
                "expected a Hugging Face config.json");
  }
  std::vector<std::string> others;
  for (const auto& [key, value] : source.items()) {
    if (key == "model_type") continue;
    if (key == kEosKey) {
      read_eos(value, reader);
    } else if (!is_rope_key(key) && reader.has_field(key) && !key.starts_with("rope_scaling.")) {
      reader.read(key, value);
    } else if (!is_rope_key(key) && !describes_file(key)) {
      others.push_back(key);
    }
  }
  for (const std::string& key : others) {
    if (!read_foreign_key(source, key, reader)) reader.read_unknown(key, source[key]);
  }
  read_rope(source, reader);
  fill_defaults(config);
  check(config);
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
  if (is_glm4_moe(config)) {
    out["head_dim"] = head_dim(config);
    out["partial_rotary_factor"] = 1.0;  // there 0.5 where it is left out
    out["use_qk_norm"] = false;
  }
  // Others know no number for none, and say nothing of what is as usual.
  if (config.rope_scaling.type != "none") out["rope_scaling"]["attention_factor"] = attention_factor_of(config);
  if (config.bos_token_id < 0) out["bos_token_id"] = nullptr;
  out[kEosKey] = eos_of(config);
  out.erase("more_eos_token_ids");
  if (latent && config.q_lora_rank == 0) out["q_lora_rank"] = nullptr;
  return out;
}

}  // namespace cadre
