// SPDX-License-Identifier: Apache-2.0
#include "layers/model/self_attention.hpp"

#include "layers/model/family.hpp"

namespace cadre {
namespace {

// Pairs of `dim` elements.
Rope rope_of(const ModelConfig& config, int64_t dim, RopeLayout layout) {
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.type == "none") return plain_rope(config.rope_theta, dim, layout);
  return yarn_rope(config.rope_theta, dim, layout,
                   {.factor = scaling.factor,
                    .beta_fast = scaling.beta_fast,
                    .beta_slow = scaling.beta_slow,
                    .mscale = scaling.mscale,
                    .mscale_all_dim = scaling.mscale_all_dim,
                    .original_max_position_embeddings = scaling.original_max_position_embeddings,
                    .attention_factor = scaling.attention_factor,
                    .truncate = scaling.truncate});
}

double score_factor(const ModelConfig& config) {
  if (config.rope_scaling.type == "none") return 1.0;
  const double mscale = yarn_mscale(config.rope_scaling.factor, config.rope_scaling.mscale_all_dim);
  return mscale * mscale;
}

CausalAttention multi_head(const std::string& prefix, const ModelConfig& config) {
  const Family& family = family_of(config);
  const auto bias = [&](bool has_it) {
    return has_it && config.attention_bias ? Linear::Bias::added : Linear::Bias::none;
  };
  return {prefix,
          {.hidden = config.hidden_size,
           .num_heads = config.num_attention_heads,
           .num_kv_heads = config.num_key_value_heads,
           .head_dim = head_dim(config),
           .rope = rope_of(config, rotary_dim(config), RopeLayout::halves),
           .score_factor = score_factor(config),
           .init_std = config.initializer_range,
           .qk_norm = config.use_qk_norm ? family.qk_norm : QkNorm::none,
           .norm_epsilon = config.rms_norm_eps,
           .clip = config.clip_qkv,
           .qkv_bias = bias(true),
           .o_bias = bias(family.bias == AttentionBias::qkv_o)}};
}

// The norms of the latent vectors have an epsilon of 1e-6 in the published code, whatever rms_norm_eps says.
LatentAttention latent(const std::string& prefix, const ModelConfig& config) {
  const RopeLayout layout = config.rope_interleave ? RopeLayout::interleaved : RopeLayout::halves;
  return {prefix,
          {.hidden = config.hidden_size,
           .num_heads = config.num_attention_heads,
           .q_rank = config.q_lora_rank,
           .kv_rank = config.kv_lora_rank,
           .nope_dim = config.qk_nope_head_dim,
           .rope_dim = config.qk_rope_head_dim,
           .value_dim = config.v_head_dim,
           .rope = rope_of(config, config.qk_rope_head_dim, layout),
           .score_factor = score_factor(config),
           .init_std = config.initializer_range,
           .bias = config.attention_bias ? Linear::Bias::added : Linear::Bias::none}};
}

std::variant<CausalAttention, LatentAttention> make_attention(const std::string& prefix, const ModelConfig& config) {
  if (has_latent_attention(config)) return latent(prefix, config);
  return multi_head(prefix, config);
}

}  // namespace

SelfAttention::SelfAttention(const std::string& prefix, const ModelConfig& config)
    : attention_(make_attention(prefix, config)) {}

Tensor SelfAttention::forward(Context& ctx, const Tensor& x, const Sequences& sequences, Saved& saved) const {
  return std::visit(
      [&]<class Attention>(const Attention& attention) {
        return attention.forward(ctx, x, sequences, saved.emplace<typename Attention::Saved>());
      },
      attention_);
}

Tensor SelfAttention::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  return std::visit(
      [&]<class Attention>(const Attention& attention) {
        return attention.input_grad(ctx, std::get<typename Attention::Saved>(saved), dy);
      },
      attention_);
}

void SelfAttention::weight_grad(Context& ctx, const Saved& saved) {
  std::visit([&]<class Attention>(
                 Attention& attention) { attention.weight_grad(ctx, std::get<typename Attention::Saved>(saved)); },
             attention_);
}

void SelfAttention::each_parameter(const ParameterVisitor& visit) {
  std::visit([&](auto& attention) { attention.each_parameter(visit); }, attention_);
}

KvCache SelfAttention::make_cache(Context& ctx, int64_t batch, int64_t capacity) const {
  return std::visit([&](const auto& attention) { return attention.make_cache(ctx, batch, capacity); }, attention_);
}

Tensor SelfAttention::decode(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const {
  return std::visit([&](const auto& attention) { return attention.decode(ctx, x, tokens, cache); }, attention_);
}

}  // namespace cadre
