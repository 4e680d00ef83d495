// SPDX-License-Identifier: Apache-2.0
#include "layers/model/config.hpp"

#include <algorithm>

#include "comm/base/check.hpp"
#include "layers/model/family.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {

std::vector<Field> fields_of(ModelConfig& c) {
  std::vector<Field> fields = {
      {"model_type", &c.model_type, one_of(model_types()), "the family of models, as Hugging Face names it"},
      {"vocab_size", &c.vocab_size, between(1, 0x7fffffff), "tokens in the vocabulary; 256 for bytes"},
      {"hidden_size", &c.hidden_size, at_least(1), "width of the residual stream"},
      {"num_hidden_layers", &c.num_hidden_layers, between(1, 100'000), "layers, dense and with experts"},
      {"max_position_embeddings", &c.max_position_embeddings, at_least(1), "longest sequence"},
      {"initializer_range", &c.initializer_range, at_least(0), "standard deviation of fresh weights"},
      {"tie_word_embeddings", &c.tie_word_embeddings, any(), "lm_head is the embedding table"},
      {"bos_token_id", &c.bos_token_id, at_least(-1), "token that begins a text; -1 for none"},
      {"eos_token_id", &c.eos_token_id, at_least(-1), "token that ends a text; -1 for none"},
      list_of("more_eos_token_ids", c.more_eos_token_ids, 0, 0x7fffffff,
              "further tokens that end a text in generation, as 3,7"),
      {"num_attention_heads", &c.num_attention_heads, at_least(1), "query heads"},
      {"num_key_value_heads", &c.num_key_value_heads, at_least(0), "key and value heads; 0 for one per query head"},
      {"head_dim", &c.head_dim, at_least(0), "elements of a head; 0: hidden_size / num_attention_heads"},
      {"use_qk_norm", &c.use_qk_norm, any(), "RMSNorm of queries and keys; of each head in glm4_moe and qwen3_moe"},
      {"partial_rotary_factor", &c.partial_rotary_factor, between(0, 1), "share of a head that turns with positions"},
      {"clip_qkv", &c.clip_qkv, at_least(0), "olmoe: queries, keys and values stay between -x and x; 0: anywhere"},
      {"rope_theta", &c.rope_theta, more_than(0), "base of the rotary frequencies"},
      {"rope_scaling.type", &c.rope_scaling.type, one_of({"none", "yarn"}), "how positions are stretched"},
      {"rope_scaling.factor", &c.rope_scaling.factor, more_than(0), "of yarn: how many times longer texts become"},
      {"rope_scaling.beta_fast", &c.rope_scaling.beta_fast, more_than(0), "pairs with more turns keep their frequency"},
      {"rope_scaling.beta_slow", &c.rope_scaling.beta_slow, more_than(0), "pairs with fewer turns are stretched whole"},
      {"rope_scaling.mscale", &c.rope_scaling.mscale, at_least(0), "m of the factor of turned elements"},
      {"rope_scaling.mscale_all_dim", &c.rope_scaling.mscale_all_dim, at_least(0),
       "m of the softmax scale; 0 for none"},
      {"rope_scaling.original_max_position_embeddings", &c.rope_scaling.original_max_position_embeddings, at_least(1),
       "longest sequence before stretching"},
      {"rope_scaling.attention_factor", &c.rope_scaling.attention_factor, at_least(0),
       "factor of turned elements; 0: from mscale and mscale_all_dim"},
      {"rope_scaling.truncate", &c.rope_scaling.truncate, any(),
       "the range of mixed pairs begins and ends at whole ones"},
      {"rope_interleave", &c.rope_interleave, any(), "latent attention: RoPE turns neighbours, not halves"},
      {"q_lora_rank", &c.q_lora_rank, at_least(0), "width of the latent query; 0 for none"},
      {"kv_lora_rank", &c.kv_lora_rank, at_least(0), "width of the latent of keys and values"},
      {"qk_nope_head_dim", &c.qk_nope_head_dim, at_least(0), "elements of a latent query that do not turn"},
      {"qk_rope_head_dim", &c.qk_rope_head_dim, at_least(0), "elements of a latent query that turn"},
      {"v_head_dim", &c.v_head_dim, at_least(0), "elements of a value of latent attention"},
      {"attention_bias", &c.attention_bias, any(), "projections have a bias; latent attention: q_a, kv_a and o"},
      {"norm", &c.norm, one_of({"rmsnorm", "layernorm"}), "normalisation before each block"},
      {"rms_norm_eps", &c.rms_norm_eps, more_than(0), "epsilon of the normalisation"},
      {"hidden_act", &c.hidden_act, one_of({"silu", "gelu", "relu"}), "of the gate, or of the inner row without one"},
      {"ffn_gate", &c.ffn_gate, any(), "down(act(gate x) * up x), as all DeepSeek models; false: down(act(up x))"},
      {"intermediate_size", &c.intermediate_size, at_least(0), "inner width of a dense layer"},
      {"n_routed_experts", &c.n_routed_experts, between(0, 1 << 20), "experts of a layer; 0 for dense layers only"},
      {"num_experts_per_tok", &c.num_experts_per_tok, between(0, 1 << 20), "experts that a token visits (top-k)"},
      {"n_shared_experts", &c.n_shared_experts, at_least(0), "experts that every token visits"},
      {"moe_intermediate_size", &c.moe_intermediate_size, at_least(0), "inner width of one expert"},
      {"shared_expert_intermediate_size", &c.shared_expert_intermediate_size, at_least(0),
       "qwen2_moe: inner width of the shared expert"},
      {"first_k_dense_replace", &c.first_k_dense_replace, at_least(0), "the first layers, without experts"},
      {"moe_layer_freq", &c.moe_layer_freq, at_least(1), "after those, every n-th layer has experts"},
      named("scoring_func", c.scoring_func, {{"softmax", ScoreFunction::softmax}, {"sigmoid", ScoreFunction::sigmoid}},
            "router logits to scores"),
      named("topk_method", c.topk_method,
            {{"greedy", TopkMethod::greedy},
             {"group_limited_greedy", TopkMethod::group_limited_greedy},
             {"noaux_tc", TopkMethod::noaux_tc}},
            "noaux_tc adds a learned bias to select"),
      {"n_group", &c.n_group, at_least(1), "groups of neighbouring experts, as many as hosts to limit traffic"},
      {"topk_group", &c.topk_group, at_least(1), "groups that the experts of a token may be in"},
      {"bias_update_rate", &c.bias_update_rate, at_least(0), "step of that bias, against the load"},
      {"norm_topk_prob", &c.norm_topk_prob, any(), "divide the chosen scores by their sum, if there are several"},
      {"routed_scaling_factor", &c.routed_scaling_factor, more_than(0), "factor of the routed experts' output"},
      {"aux_loss_alpha", &c.aux_loss_alpha, at_least(0), "weight of the balance loss (Fedus et al. 2021)"},
      {"num_nextn_predict_layers", &c.num_nextn_predict_layers, between(0, 64),
       "modules that predict further tokens (MTP)"},
      {"mtp_loss_factor", &c.mtp_loss_factor, at_least(0), "weight of their mean loss (lambda)"},
  };
  std::ranges::move(router_fields(c), std::back_inserter(fields));
  return fields;
}

std::string key_text(const ModelConfig& config, std::string_view key) {
  ModelConfig copy = config;
  const FieldValue value = value_of(field_named(fields_of(copy), key));
  const auto* text = std::get_if<std::string>(&value);
  return text != nullptr ? *text : value_text(value);
}

void set_key(ModelConfig& config, std::string_view key, const std::string& text) {
  assign_text(field_named(fields_of(config), key), text, "model.");
}

void fill_defaults(ModelConfig& config) {
  if (config.num_key_value_heads == 0) config.num_key_value_heads = config.num_attention_heads;
  const Family* family = find_family(config.model_type);  // check() refuses another one
  if (family == nullptr) return;
  if (!family->has_dense_layers) config.intermediate_size = config.moe_intermediate_size;
  if (family->has_head_dim && config.head_dim == 0 && config.num_attention_heads > 0) {
    config.head_dim = config.hidden_size / config.num_attention_heads;
  }
}

bool has_latent_attention(const ModelConfig& config) { return family_of(config).attention == AttentionKind::latent; }

int64_t shared_width(const ModelConfig& config) {
  const bool has_own_width = !family_of(config).names.shared_gate.empty();
  return config.n_shared_experts *
         (has_own_width ? config.shared_expert_intermediate_size : config.moe_intermediate_size);
}

int64_t rotary_dim(const ModelConfig& config) {
  return static_cast<int64_t>(static_cast<double>(head_dim(config)) * config.partial_rotary_factor);
}

std::vector<int32_t> end_tokens(const ModelConfig& config) {
  std::vector<int32_t> tokens = config.more_eos_token_ids;
  if (config.eos_token_id >= 0) tokens.insert(tokens.begin(), static_cast<int32_t>(config.eos_token_id));
  return tokens;
}

bool is_moe_layer(const ModelConfig& config, int64_t layer) {
  return config.n_routed_experts > 0 && layer >= config.first_k_dense_replace && layer % config.moe_layer_freq == 0;
}

}  // namespace cadre
