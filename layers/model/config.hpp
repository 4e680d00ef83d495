// SPDX-License-Identifier: Apache-2.0
// The shape of a model: the keys of a Hugging Face config.json as a plain struct, the few keys that Cadre adds, and the
// numbers that follow from the shape alone.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "comm/base/fields.hpp"
#include "layers/router/options.hpp"

namespace cadre {

// How positions beyond those of training are reached: the object rope_scaling of a config.json, newer rope_parameters.
struct RopeScaling {
  std::string type = "none";  // or yarn
  double factor = 1.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 1.0;
  double mscale_all_dim = 0.0;
  int64_t original_max_position_embeddings = 4096;
  double attention_factor = 0.0;  // of turned elements; 0: from mscale and mscale_all_dim
  bool truncate = true;           // the first and last pair between beta_fast and beta_slow are whole numbers

  bool operator==(const RopeScaling&) const = default;
};

// The published gates. greedy: the best experts, whatever their group; group_limited_greedy: of the best groups (V2);
// noaux_tc: the same by score + selection bias (V3; Wang et al. 2024).
enum class TopkMethod { greedy, group_limited_greedy, noaux_tc };

enum class NormPosition {
  pre,
  post
};  // of a block's part: norm(x) goes in, or norm(x + y) comes out (Vaswani et al. 2017)

// Field names are the JSON keys, with a dot before those of an inner object; fields_of() holds their ranges and meanings in
// one table. A key that a config.json leaves out has the default of its family. model_type names the family (family.hpp): it
// decides on multi-head attention with rotate-half RoPE or latent attention, and on the names of tensors; the other keys say what
// they do.
struct ModelConfig {
  std::string model_type = "deepseek";

  int64_t vocab_size = 256;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t max_position_embeddings = 2048;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  int64_t bos_token_id = -1;  // -1: none
  int64_t eos_token_id = -1;
  std::vector<int32_t> more_eos_token_ids;  // a config.json has one list of both

  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;     // 0 becomes num_attention_heads, see fill_defaults
  int64_t head_dim = 0;                // of multi-head attention; 0 becomes hidden_size / num_attention_heads
  bool use_qk_norm = false;            // of multi-head attention: RMSNorm of queries and keys, as the family has it
  double partial_rotary_factor = 1.0;  // of multi-head attention: share of a head that turns, the first elements
  double clip_qkv = 0.0;               // of multi-head attention: bound of queries, keys and values; 0: none
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool rope_interleave = true;  // latent attention: pairs are neighbours

  // Latent attention.
  int64_t q_lora_rank = 0;  // 0: queries come straight from the hidden state
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  // Latent: of the projections from the hidden state into latent vectors, and of the last one. Multi-head: of queries, keys and
  // values, and of the last one, as the family has it.
  bool attention_bias = false;

  std::string norm = "rmsnorm";
  double rms_norm_eps = 1e-6;  // of either norm

  std::string hidden_act = "silu";
  bool ffn_gate = true;           // down(act(gate x) * up x), with silu SwiGLU; else down(act(up x))
  int64_t intermediate_size = 0;  // of a dense layer

  int64_t n_routed_experts = 0;  // 0: every layer is dense
  int64_t num_experts_per_tok = 0;
  int64_t n_shared_experts = 0;
  int64_t moe_intermediate_size = 0;            // of one expert
  int64_t shared_expert_intermediate_size = 0;  // of a shared expert with a gate
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;

  ScoreFunction scoring_func = ScoreFunction::softmax;
  TopkMethod topk_method = TopkMethod::greedy;
  double bias_update_rate = 0.001;  // gamma of noaux_tc
  int64_t n_group = 1;              // groups of neighbouring experts
  int64_t topk_group = 1;           // of which a token may choose from
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1.0;
  double aux_loss_alpha = 0.001;
  RouterOptions router = {};  // what keys set of it; router_options() has all of it

  ExpertKinds expert_kinds = ExpertKinds::same;
  int64_t inner_experts = 4;  // of each expert that is a mixture
  int64_t inner_experts_per_tok = 2;
  bool shared_expert_mean = false;
  NormPosition norm_position = NormPosition::pre;
  bool ffn_highway = false;

  // Modules behind the last layer that predict one token further each, in training only (V3, section 2.2).
  int64_t num_nextn_predict_layers = 0;
  double mtp_loss_factor = 0.3;  // lambda

  bool operator==(const ModelConfig&) const = default;
};

// The table of keys, bound to the members of `config`.
std::vector<Field> fields_of(ModelConfig& config);
// The value of a key as text, without quotes; and the other way round: throws where the text is not allowed.
std::string key_text(const ModelConfig& config, std::string_view key);
void set_key(ModelConfig& config, std::string_view key, const std::string& text);

// What follows from other keys when it is left out: num_key_value_heads = num_attention_heads; intermediate_size =
// moe_intermediate_size in a family without dense layers.
void fill_defaults(ModelConfig& config);

// Reads a parsed config.json as transformers 5 does, and checks it. `where` names the file in messages. Keys that change
// nothing in Cadre, at any value or at the one they have, are appended to `unused` if given, except those that only describe
// the file; any other unknown key is an error that names it, because it may change what the model computes.
ModelConfig model_config_from_json(const nlohmann::json& json, const std::string& where,
                                   std::vector<std::string>* unused = nullptr);

// A config.json that Hugging Face transformers reads.
nlohmann::json to_json(const ModelConfig& config);

// Throws on the first value out of range or combination that cannot run.
void check(const ModelConfig& config);

// Tokens that end a text in generation: eos_token_id and those beside it.
std::vector<int32_t> end_tokens(const ModelConfig& config);

bool is_moe_layer(const ModelConfig& config, int64_t layer);
// Inner width of the shared experts together.
int64_t shared_width(const ModelConfig& config);
inline bool is_gated(const ModelConfig& config) { return config.ffn_gate; }
// Whether the weights of a token's experts are divided by their sum: as the published models, only where there are several.
// Divided by itself a single one would be 1, and no gradient would reach the router.
// Of projections there are three kinds that share out a weight each.
inline bool renormalises(const ModelConfig& config) {
  const int64_t kinds = config.expert_kinds == ExpertKinds::projections ? 3 : 1;
  return config.norm_topk_prob && config.num_experts_per_tok > kinds;
}
bool has_latent_attention(const ModelConfig& config);  // else multi-head
// Of multi-head attention: elements of a head, and how many of them turn.
inline int64_t head_dim(const ModelConfig& config) {
  return config.head_dim > 0 ? config.head_dim : config.hidden_size / config.num_attention_heads;
}
int64_t rotary_dim(const ModelConfig& config);

// Elements of the model (selection biases included), what one token passes through (its top-k experts only, both
// vocabulary tables), and the input embedding alone. The MTP modules count for themselves, without
// the vocabulary tables that they share with the model.
struct ParameterCount {
  int64_t total = 0;
  int64_t active = 0;
  int64_t embedding = 0;
  int64_t mtp_modules = 0;
};
ParameterCount count_parameters(const ModelConfig& config);

// Forward and backward, without MTP modules: 6 N + 3 L NH (D + DV) (S + 1). N counts the active weights that
// are multiplied (no embedding, norm or bias): 2 FLOPs forward, 4 backward each. A token sees (S + 1) / 2 keys on average;
// scores cost 2 NH D FLOPs a key and their weighted sum 2 NH DV, three times with backward.
double flops_per_token(const ModelConfig& config, int64_t sequence_length);
// The part of them in products of routed experts.
double routed_flops_per_token(const ModelConfig& config);

// Elements of the matrices of a layer that take part in products; each costs a token 2 FLOPs in a forward pass and 4 in a
// backward pass. A number above the last layer is an MTP module's.
struct LayerElements {
  int64_t attention = 0;
  int64_t mla_up = 0;  // of these: what makes queries, keys and values of latent vectors
  int64_t router = 0;
  int64_t shared_experts = 0;
  int64_t dense = 0;        // a dense network, or the one behind the experts
  int64_t experts = 0;      // all of them
  int64_t met_experts = 0;  // those of one token
};
LayerElements layer_elements(const ModelConfig& config, int64_t layer);

// FLOPs of the scores and weighted sums of attention, of one token in the forward pass of one layer.
double attended_flops(const ModelConfig& config, int64_t sequence_length);

}  // namespace cadre
