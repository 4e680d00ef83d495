// SPDX-License-Identifier: Apache-2.0
#include "layers/model/family.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include "comm/base/check.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

constexpr std::array kFamilies = {&deepseek_family,      &deepseek_v2_family, &deepseek_v3_family, &kimi_k2_family,
                                  &glm4_moe_lite_family, &mixtral_family,     &glm4_moe_family,    &olmoe_family,
                                  &qwen2_moe_family,     &qwen3_moe_family};

// Keys of routing that change nothing once a model is trained; names of losses end in _weight or _coef.
constexpr std::array<std::string_view, 15> kTrainingKeys = {
    "balance_devices", "capacity_drop",         "capacity_factor",
    "capacity_rate",   "capacity_renormalise",  "expert_tasks",
    "inner_experts",   "inner_experts_per_tok", "router_jitter_noise",
    "seq_aux",         "balance_device_layout", "device_variance_form",
    "expert_capacity", "expert_variance_form",  "importance_form"};

bool only_trains(std::string_view key) {
  return key.ends_with("_weight") || key.ends_with("_coef") ||
         std::ranges::find(kTrainingKeys, key) != kTrainingKeys.end();
}

void append_routing_keys(const ModelConfig& config, std::vector<std::string>& keys) {
  ModelConfig own = config;
  own.router.select.plugin = router_plugin(config);
  ModelConfig usual;
  const std::vector<Field> fields = router_fields(own);
  const std::vector<Field> usual_fields = router_fields(usual);
  for (size_t i = 0; i < fields.size(); ++i) {
    if (value_of(fields[i]) != value_of(usual_fields[i]) && !only_trains(fields[i].name))
      keys.push_back(fields[i].name);
  }
}

bool has_gate(GateForm form, const ModelConfig& c) {
  if (form == GateForm::sigmoid_bias) {
    return c.scoring_func == ScoreFunction::sigmoid && c.topk_method == TopkMethod::noaux_tc;
  }
  if (c.scoring_func != ScoreFunction::softmax) return false;
  return c.topk_method == TopkMethod::greedy ||
         (form == GateForm::softmax_groups && c.topk_method == TopkMethod::group_limited_greedy);
}

// Here the weight of a single expert is never divided by itself (renormalises).
bool has_score_norm(ScoreNorm norm, const ModelConfig& c) {
  switch (norm) {
    case ScoreNorm::several: return true;
    case ScoreNorm::by_key: return !c.norm_topk_prob || c.num_experts_per_tok > 1;
    case ScoreNorm::never: return !c.norm_topk_prob || c.num_experts_per_tok == 1;
    case ScoreNorm::always: return c.norm_topk_prob && c.num_experts_per_tok > 1;
  }
  return false;
}

bool has_yarn_of(const Family& family, const ModelConfig& c) {
  if (c.rope_scaling.type == "none") return true;
  // In transformers only latent attention scales its scores by mscale_all_dim.
  return family.has_yarn && (family.attention == AttentionKind::latent || c.rope_scaling.mscale_all_dim == 0.0);
}

constexpr std::string_view kOwnPrefix = "cadre_";

}  // namespace

const Family* find_family(std::string_view model_type) {
  for (auto* row : kFamilies) {
    if (row().model_type == model_type) return &row();
  }
  return nullptr;
}

const Family& family_of(const ModelConfig& config) {
  const Family* family = find_family(config.model_type);
  CADRE_ASSERT(family != nullptr);
  return *family;
}

std::vector<std::string> model_types() {
  std::vector<std::string> names;
  for (auto* row : kFamilies) names.emplace_back(row().model_type);
  return names;
}

void set_latent_defaults(ModelConfig& config) {
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
}

std::vector<std::string> keys_beyond(const Family& family, const ModelConfig& c) {
  const bool has_experts = c.n_routed_experts > 0;
  struct Departure {
    const char* key;
    bool is_there;
  };
  const Departure departures[] = {
      {"norm", c.norm != "rmsnorm"},
      {"ffn_gate", !c.ffn_gate},
      {"scoring_func or topk_method", has_experts && !has_gate(family.gate, c)},
      {"norm_topk_prob", has_experts && !has_score_norm(family.score_norm, c)},
      {"routed_scaling_factor", has_experts && !family.scales_scores && c.routed_scaling_factor != 1.0},
      {"rope_scaling", !has_yarn_of(family, c)},
      {"use_qk_norm", family.qk_norm != QkNorm::none && !family.has_qk_norm_key && !c.use_qk_norm},
      {"rope_interleave",
       family.attention == AttentionKind::latent && !family.has_rope_interleave && !c.rope_interleave},
      // Other classes have experts in all layers behind the first ones.
      {"moe_layer_freq", has_experts && !family.has_moe_layer_freq && c.moe_layer_freq != 1},
      {"n_routed_experts", !has_experts && !family.has_moe_layer_freq && c.first_k_dense_replace < c.num_hidden_layers},
      {"first_k_dense_replace", !family.has_dense_layers && c.first_k_dense_replace > 0},
      {"n_shared_experts", !family.has_shared_experts && c.n_shared_experts > 0},
      {"n_shared_experts", has_experts && !family.names.shared_gate.empty() && c.n_shared_experts != 1},
      {"num_nextn_predict_layers", !family.has_mtp_modules && c.num_nextn_predict_layers > 0},
      // Groups are scored by their two best experts.
      {"n_group", has_experts && family.gate == GateForm::sigmoid_bias && c.n_routed_experts / c.n_group < 2},
  };
  std::vector<std::string> keys;
  for (const Departure& departure : departures) {
    if (departure.is_there) keys.emplace_back(departure.key);
  }
  append_routing_keys(c, keys);
  return keys;
}

const Family& saved_family(const ModelConfig& c) {
  const bool is_glm = c.model_type == "deepseek" && c.n_routed_experts > 0 && c.rope_scaling.type == "none" &&
                      c.scoring_func == ScoreFunction::sigmoid && c.topk_method == TopkMethod::noaux_tc;
  return is_glm ? glm4_moe_family() : family_of(c);
}

std::vector<std::string> keys_beyond_class(const ModelConfig& config) {
  return keys_beyond(saved_family(config), config);
}

std::string architecture_name(const ModelConfig& config) {
  return keys_beyond_class(config).empty() ? std::string(saved_family(config).architecture) : "CadreForCausalLM";
}

std::string saved_model_type(const ModelConfig& config) {
  if (keys_beyond_class(config).empty()) return std::string(saved_family(config).model_type);
  return std::string(kOwnPrefix) + config.model_type;
}

std::string model_type_of_saved(const std::string& saved) {
  return saved.starts_with(kOwnPrefix) ? saved.substr(kOwnPrefix.size()) : saved;
}

}  // namespace cadre
