// SPDX-License-Identifier: Apache-2.0
// Which shapes can run.
#include <fmt/format.h>

#include <utility>

#include "comm/base/check.hpp"
#include "layers/model/config.hpp"
#include "layers/model/family.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

void check_multi_head_attention(const ModelConfig& c) {
  const Family& family = family_of(c);
  CADRE_CHECK(c.head_dim > 0 || (c.hidden_size % c.num_attention_heads == 0 && head_dim(c) % 2 == 0),
              fmt::format("model.num_attention_heads = {}, allowed: hidden_size = {} divided by it is an even integer",
                          c.num_attention_heads, c.hidden_size),
              "RoPE turns pairs of elements of a head");
  CADRE_CHECK(family.has_head_dim || c.head_dim == 0 || c.head_dim * c.num_attention_heads == c.hidden_size,
              fmt::format("model.head_dim = {}, allowed: hidden_size / num_attention_heads with model_type {}",
                          c.head_dim, c.model_type),
              "the sizes of a head follow from other keys");
  CADRE_CHECK(family.has_partial_rotary || c.partial_rotary_factor == 1.0,
              fmt::format("model.partial_rotary_factor = {}, allowed: 1.0 with model_type {}", c.partial_rotary_factor,
                          c.model_type),
              "all elements turn that positions turn");
  CADRE_CHECK(rotary_dim(c) >= 2 && rotary_dim(c) % 2 == 0,
              fmt::format("model.partial_rotary_factor = {} of head_dim = {}, allowed: an even number of elements >= 2",
                          c.partial_rotary_factor, head_dim(c)),
              "RoPE turns pairs of elements");
  CADRE_CHECK(family.has_clip || c.clip_qkv == 0.0,
              fmt::format("model.clip_qkv = {}, allowed: 0 with model_type {}", c.clip_qkv, c.model_type),
              "queries, keys and values have no bound there");
  CADRE_CHECK(family.qk_norm != QkNorm::none || !c.use_qk_norm,
              fmt::format("model.use_qk_norm = true, allowed: false with model_type {}", c.model_type),
              "queries and keys have no norm there");
  CADRE_CHECK(c.num_key_value_heads >= 1 && c.num_attention_heads % c.num_key_value_heads == 0,
              fmt::format("model.num_key_value_heads = {}, allowed: a divisor of num_attention_heads = {}",
                          c.num_key_value_heads, c.num_attention_heads),
              "each key/value head serves the same number of query heads");
  const ModelConfig none;
  CADRE_CHECK(c.kv_lora_rank == none.kv_lora_rank && c.q_lora_rank == none.q_lora_rank,
              fmt::format("model.kv_lora_rank = {}, q_lora_rank = {}, allowed: 0 with model_type {}", c.kv_lora_rank,
                          c.q_lora_rank, c.model_type),
              "latent attention is that of deepseek_v2 and deepseek_v3");
  CADRE_CHECK(family.bias != AttentionBias::none || !c.attention_bias,
              fmt::format("model.attention_bias = true, allowed: false with model_type {}", c.model_type),
              "its projections have none");
}

void check_latent_attention(const ModelConfig& c) {
  const std::pair<const char*, int64_t> sizes[] = {{"kv_lora_rank", c.kv_lora_rank},
                                                   {"qk_nope_head_dim", c.qk_nope_head_dim},
                                                   {"qk_rope_head_dim", c.qk_rope_head_dim},
                                                   {"v_head_dim", c.v_head_dim}};
  for (const auto& [name, size] : sizes) {
    CADRE_CHECK(size >= 1,
                fmt::format("model.{} = {}, allowed: integer >= 1 with model_type {}", name, size, c.model_type),
                "a size of latent attention");
  }
  CADRE_CHECK(
      c.head_dim == 0 && !c.use_qk_norm && c.partial_rotary_factor == 1.0 && c.clip_qkv == 0.0,
      fmt::format("model.head_dim = {}, use_qk_norm = {}, partial_rotary_factor = {}, clip_qkv = {}, allowed: 0, "
                  "false, 1 and 0 with model_type {}",
                  c.head_dim, c.use_qk_norm, c.partial_rotary_factor, c.clip_qkv, c.model_type),
      "keys of multi-head attention");
  CADRE_CHECK(c.qk_rope_head_dim % 2 == 0,
              fmt::format("model.qk_rope_head_dim = {}, allowed: an even integer", c.qk_rope_head_dim),
              "RoPE turns pairs of elements");
  CADRE_CHECK(c.num_key_value_heads == c.num_attention_heads,
              fmt::format("model.num_key_value_heads = {}, allowed: num_attention_heads = {}", c.num_key_value_heads,
                          c.num_attention_heads),
              "in latent attention every head has keys and values of its own");
}

void check_experts(const ModelConfig& c) {
  CADRE_CHECK(c.num_experts_per_tok >= 1 && c.num_experts_per_tok <= c.n_routed_experts,
              fmt::format("model.num_experts_per_tok = {}, allowed: integer in [1, n_routed_experts = {}]",
                          c.num_experts_per_tok, c.n_routed_experts),
              "a token cannot visit an expert twice");
  CADRE_CHECK(c.moe_intermediate_size >= 1,
              fmt::format("model.moe_intermediate_size = {}, allowed: integer >= 1", c.moe_intermediate_size),
              "needed because n_routed_experts is not 0");
  CADRE_CHECK(
      c.n_routed_experts % c.n_group == 0,
      fmt::format("model.n_group = {}, allowed: a divisor of n_routed_experts = {}", c.n_group, c.n_routed_experts),
      "groups are equally large");
  CADRE_CHECK(c.topk_group <= c.n_group,
              fmt::format("model.topk_group = {}, allowed: integer in [1, n_group = {}]", c.topk_group, c.n_group),
              "the groups that a token may choose from");
  CADRE_CHECK(
      c.num_experts_per_tok <= c.n_routed_experts / c.n_group * c.topk_group,
      fmt::format("model.num_experts_per_tok = {}, allowed: integer in [1, {}], the experts of topk_group = {} groups",
                  c.num_experts_per_tok, c.n_routed_experts / c.n_group * c.topk_group, c.topk_group),
      "raise topk_group");
  CADRE_CHECK(c.first_k_dense_replace <= c.num_hidden_layers,
              fmt::format("model.first_k_dense_replace = {}, allowed: integer in [0, num_hidden_layers = {}]",
                          c.first_k_dense_replace, c.num_hidden_layers),
              "the number of dense layers before the first layer with experts");
  const bool has_shared_gate = !family_of(c).names.shared_gate.empty();
  CADRE_CHECK(
      has_shared_gate ? c.n_shared_experts == 0 || c.shared_expert_intermediate_size >= 1
                      : c.shared_expert_intermediate_size == 0,
      fmt::format("model.shared_expert_intermediate_size = {}, allowed: {} with model_type {}",
                  c.shared_expert_intermediate_size, has_shared_gate ? "integer >= 1" : "0", c.model_type),
      has_shared_gate ? "inner width of the shared expert" : "a shared expert is as wide as n_shared_experts others");
  CADRE_CHECK(!has_shared_gate || !c.shared_expert_mean,
              fmt::format("model.shared_expert_mean = true, allowed: false with model_type {}", c.model_type),
              "its gate weighs the shared expert");
  check_router(c);
}

// Sizes whose products would not fit the integers that count them. The bound is generous: each weight of a layer is among
// the elements of a square or of a product here.
void check_size(const ModelConfig& c, const std::vector<Field>& fields) {
  constexpr int64_t kLargest = 0x7fffffff;
  for (const Field& field : fields) {
    const FieldValue value = value_of(field);
    const auto* integer = std::get_if<int64_t>(&value);
    CADRE_CHECK(integer == nullptr || *integer <= kLargest,
                fmt::format("model.{} = {}, allowed: integer up to {}", field.name, *integer, kLargest), field.help);
  }
  const auto real = [](int64_t size) { return static_cast<double>(size); };
  const double hidden = real(c.hidden_size);
  const double heads =
      real(c.num_attention_heads) * real(c.head_dim + c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim);
  const double attention = hidden + real(c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim) + heads;
  const double inner = c.expert_kinds == ExpertKinds::mixture ? real(c.inner_experts) : 1.0;
  const double experts = inner * real(c.n_routed_experts) + real(c.n_shared_experts + 1);
  const double shared = hidden * real(c.n_shared_experts) * real(c.shared_expert_intermediate_size);
  const double ffn = hidden * (real(c.intermediate_size) + experts * (real(c.moe_intermediate_size) + 2.0));
  const double tables = 2.0 * real(1 + c.num_nextn_predict_layers) * real(c.vocab_size) * hidden;
  const double elements =
      tables + real(c.num_hidden_layers + c.num_nextn_predict_layers) * 4.0 * (attention * attention + ffn + shared);
  CADRE_CHECK(elements < 0x1p60, fmt::format("the model has up to {:.2g} parameters, allowed: below 2^60", elements),
              "one of hidden_size, num_hidden_layers, n_routed_experts and the other sizes is far too large");
}

// Also one that stands behind a mixture.
bool has_dense_layer(const ModelConfig& config) {
  if (config.ffn_highway) return true;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!is_moe_layer(config, layer)) return true;
  }
  return false;
}

}  // namespace

void check(const ModelConfig& config) {
  ModelConfig copy = config;
  const std::vector<Field> fields = fields_of(copy);
  check_ranges(fields, "model.");
  check_size(config, fields);
  for (const int64_t token : {config.bos_token_id, config.eos_token_id}) {
    CADRE_CHECK(token < config.vocab_size,
                fmt::format("model.bos_token_id or eos_token_id = {}, allowed: integer in [-1, vocab_size = {})", token,
                            config.vocab_size),
                "-1 for none");
  }
  for (const int32_t token : config.more_eos_token_ids) {
    CADRE_CHECK(token >= 0 && token < config.vocab_size,
                fmt::format("model.more_eos_token_ids = \"{}\", allowed: {}", key_text(config, "more_eos_token_ids"),
                            list_form(0, config.vocab_size - 1)),
                "tokens of the vocabulary");
  }
  CADRE_CHECK(config.rope_scaling.type == "none" || config.rope_scaling.factor >= 1.0,
              fmt::format("model.rope_scaling.factor = {}, allowed: number >= 1", config.rope_scaling.factor),
              "positions are stretched, not pressed");
  has_latent_attention(config) ? check_latent_attention(config) : check_multi_head_attention(config);
  if (config.n_routed_experts > 0) check_experts(config);
  CADRE_CHECK(config.intermediate_size >= 1 || !has_dense_layer(config),
              fmt::format("model.intermediate_size = {}, allowed: integer >= 1", config.intermediate_size),
              "some layers are dense: see first_k_dense_replace, moe_layer_freq and n_routed_experts");
}

}  // namespace cadre
