// SPDX-License-Identifier: Apache-2.0
// What follows from the shape alone: parameters and FLOPs.
#include "layers/model/config.hpp"
#include "layers/model/family.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

int64_t mla_up_weights(const ModelConfig& c) {
  if (!has_latent_attention(c)) return 0;
  const int64_t query = c.qk_nope_head_dim + c.qk_rope_head_dim;
  const int64_t query_source = c.q_lora_rank > 0 ? c.q_lora_rank : c.hidden_size;
  return c.num_attention_heads * (query_source * query + c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim));
}

// Elements of the matrices of one layer's attention.
int64_t attention_weights(const ModelConfig& c) {
  if (!has_latent_attention(c)) {
    return 2 * c.hidden_size * head_dim(c) * (c.num_attention_heads + c.num_key_value_heads);
  }
  return mla_up_weights(c) + c.hidden_size * (c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim) +
         c.num_attention_heads * c.v_head_dim * c.hidden_size;
}

// Elements of a query and of a value, all heads together: what a key costs.
int64_t attended_width(const ModelConfig& c) {
  if (!has_latent_attention(c)) return 2 * c.num_attention_heads * head_dim(c);
  return c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim);
}

int64_t norm_elements(const ModelConfig& c) { return c.norm == "layernorm" ? 2 * c.hidden_size : c.hidden_size; }

int64_t latent_vectors(const ModelConfig& c) {
  const int64_t biases = c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim + c.hidden_size;
  return c.kv_lora_rank + c.q_lora_rank + (c.attention_bias ? biases : 0);
}

int64_t multi_head_vectors(const ModelConfig& c) {
  const Family& family = family_of(c);
  const int64_t heads = c.num_attention_heads + c.num_key_value_heads;
  int64_t count = 0;
  if (c.use_qk_norm) count += (family.qk_norm == QkNorm::head ? 2 : heads) * head_dim(c);
  if (c.attention_bias) count += (heads + c.num_key_value_heads) * head_dim(c);
  if (c.attention_bias && family.bias == AttentionBias::qkv_o) count += c.hidden_size;
  return count;
}

// Elements of one layer that no product touches: norms and the buffers of a router.
int64_t layer_vectors(const ModelConfig& c, int64_t layer) {
  int64_t count = 2 * norm_elements(c);
  count += has_latent_attention(c) ? latent_vectors(c) : multi_head_vectors(c);
  if (is_moe_layer(c, layer)) count += router_buffers(c);
  return count;
}

int64_t count_vectors(const ModelConfig& c) {
  int64_t count = norm_elements(c);
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) count += layer_vectors(c, layer);
  return count;
}

int64_t total_of(const LayerElements& e) { return e.attention + e.router + e.shared_experts + e.dense + e.experts; }
int64_t active_of(const LayerElements& e) { return total_of(e) - e.experts + e.met_experts; }

}  // namespace

LayerElements layer_elements(const ModelConfig& c, int64_t layer) {
  const int64_t ffn_matrices = is_gated(c) ? 3 : 2;
  const int64_t highway = c.ffn_highway ? c.hidden_size * c.hidden_size : 0;
  const int64_t ffn = highway + ffn_matrices * c.hidden_size * c.intermediate_size;
  LayerElements elements = {.attention = attention_weights(c), .mla_up = mla_up_weights(c)};
  if (!is_moe_layer(c, layer)) {
    elements.dense = ffn;
    return elements;
  }
  const ExpertWeights routed = routed_expert_weights(c);
  elements.router = router_weights(c);
  const bool has_shared_gate = c.n_shared_experts > 0 && !family_of(c).names.shared_gate.empty();
  elements.shared_experts = ffn_matrices * c.hidden_size * shared_width(c) + (has_shared_gate ? c.hidden_size : 0);
  elements.dense = highway > 0 ? ffn : 0;
  elements.experts = routed.total;
  elements.met_experts = c.num_experts_per_tok * routed.active / c.n_routed_experts;
  return elements;
}

double attended_flops(const ModelConfig& config, int64_t sequence_length) {
  return static_cast<double>(attended_width(config)) * static_cast<double>(sequence_length + 1);
}

ParameterCount count_parameters(const ModelConfig& config) {
  const int64_t embedding = config.vocab_size * config.hidden_size;
  const int64_t tables = config.tie_word_embeddings ? embedding : 2 * embedding;
  ParameterCount count{.total = tables + count_vectors(config), .embedding = embedding};
  count.active = count.total;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const LayerElements elements = layer_elements(config, layer);
    count.total += total_of(elements);
    count.active += active_of(elements);
  }
  for (int64_t module = 0; module < config.num_nextn_predict_layers; ++module) {
    const int64_t layer = config.num_hidden_layers + module;
    const int64_t projection = 2 * config.hidden_size * config.hidden_size;
    count.mtp_modules += total_of(layer_elements(config, layer)) + layer_vectors(config, layer) + projection;
    count.mtp_modules += 3 * norm_elements(config);
  }
  return count;
}

double flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  const ParameterCount count = count_parameters(config);
  // The head multiplies also where it is the embedding table.
  const int64_t looked_up = config.tie_word_embeddings ? 0 : count.embedding;
  const auto multiplied = static_cast<double>(count.active - looked_up - count_vectors(config));
  const double attended = static_cast<double>(config.num_hidden_layers) * attended_flops(config, sequence_length);
  return 6.0 * multiplied + 3.0 * attended;
}

double routed_flops_per_token(const ModelConfig& config) {
  double elements = 0.0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    elements += static_cast<double>(layer_elements(config, layer).met_experts);
  }
  return 6.0 * elements;
}

}  // namespace cadre
