// SPDX-License-Identifier: Apache-2.0
#include "layers/model/architecture.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

constexpr std::string_view kOwnPrefix = "cadre_";
constexpr const char* kGlm = "glm4_moe";

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
  ModelConfig usual;
  const std::vector<Field> fields = router_fields(own);
  const std::vector<Field> usual_fields = router_fields(usual);
  for (size_t i = 0; i < fields.size(); ++i) {
    if (value_of(fields[i]) != value_of(usual_fields[i]) && !only_trains(fields[i].name))
      keys.push_back(fields[i].name);
  }
}

bool has_gate_of_v3(const ModelConfig& c) {
  return c.scoring_func == ScoreFunction::sigmoid && c.topk_method == TopkMethod::noaux_tc;
}

bool gate_is_as_published(const ModelConfig& c) {
  if (c.model_type == "deepseek_v3") return has_gate_of_v3(c);
  if (is_glm4_moe(c)) return true;
  if (c.scoring_func != ScoreFunction::softmax) return false;
  return c.topk_method == TopkMethod::greedy ||
         (c.model_type == "deepseek_v2" && c.topk_method == TopkMethod::group_limited_greedy);
}

}  // namespace

bool is_glm4_moe(const ModelConfig& c) {
  return c.model_type == "deepseek" && c.n_routed_experts > 0 && has_gate_of_v3(c);
}

std::vector<std::string> keys_beyond_deepseek(const ModelConfig& c) {
  const bool is_v1 = c.model_type == "deepseek" && !is_glm4_moe(c);
  const bool is_v2 = c.model_type == "deepseek_v2";
  const bool is_v3 = c.model_type == "deepseek_v3" || is_glm4_moe(c);
  const bool has_experts = c.n_routed_experts > 0;
  struct Departure {
    const char* key;
    bool is_there;
  };
  const Departure departures[] = {
      {"norm", c.norm != "rmsnorm"},
      {"ffn_gate", !c.ffn_gate},
      {"scoring_func or topk_method", has_experts && !gate_is_as_published(c)},
      // The published gate divides only for top-k > 1, that of transformers always.
      {"norm_topk_prob", has_experts && is_v3 && c.norm_topk_prob && c.num_experts_per_tok == 1},
      // The gate of V2 in transformers does not know the key.
      {"norm_topk_prob", has_experts && is_v2 && c.norm_topk_prob && c.num_experts_per_tok > 1},
      {"routed_scaling_factor", has_experts && is_v1 && c.routed_scaling_factor != 1.0},
      {"rope_scaling", c.model_type == "deepseek" && c.rope_scaling.type != "none"},
      {"rope_interleave", is_v2 && !c.rope_interleave},
      // transformers has experts in all layers behind the first ones, and takes the two best of each group.
      {"moe_layer_freq", has_experts && !is_v1 && c.moe_layer_freq != 1},
      {"n_routed_experts", !has_experts && !is_v1 && c.first_k_dense_replace < c.num_hidden_layers},
      {"n_group", has_experts && is_v3 && c.n_routed_experts / c.n_group < 2},
  };
  std::vector<std::string> keys;
  for (const Departure& departure : departures) {
    if (departure.is_there) keys.emplace_back(departure.key);
  }
  append_routing_keys(c, keys);
  return keys;
}

std::string architecture_name(const ModelConfig& config) {
  if (!keys_beyond_deepseek(config).empty()) return "CadreForCausalLM";
  if (is_glm4_moe(config)) return "Glm4MoeForCausalLM";
  if (config.model_type == "deepseek_v3") return "DeepseekV3ForCausalLM";
  return config.model_type == "deepseek_v2" ? "DeepseekV2ForCausalLM" : "DeepseekForCausalLM";
}

std::string saved_model_type(const ModelConfig& config) {
  if (!keys_beyond_deepseek(config).empty()) return std::string(kOwnPrefix) + config.model_type;
  return is_glm4_moe(config) ? kGlm : config.model_type;
}

std::string model_type_of_saved(const std::string& saved) {
  if (saved == kGlm) return "deepseek";
  if (saved == "kimi_k2") return "deepseek_v3";  // the same model under another name
  return saved.starts_with(kOwnPrefix) ? saved.substr(kOwnPrefix.size()) : saved;
}

}  // namespace cadre
