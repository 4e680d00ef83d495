// SPDX-License-Identifier: Apache-2.0
#include "layers/model/block.hpp"

#include "comm/base/check.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

AttentionOptions attention_options(const ModelConfig& config) {
  return {.hidden = config.hidden_size,
          .num_heads = config.num_attention_heads,
          .num_kv_heads = config.num_key_value_heads,
          .head_dim = head_dim(config),
          .rope_theta = config.rope_theta,
          .init_std = config.initializer_range};
}

MoeOptions moe_options(const ModelConfig& config) {
  return {.hidden = config.hidden_size,
          .expert_width = config.moe_intermediate_size,
          .shared_width = config.n_shared_experts * config.moe_intermediate_size,
          .activation = activation_named(config.hidden_act),
          .init_std = config.initializer_range,
          .router = router_options(config)};
}

std::string layer_name(int index, const char* part) { return fmt::format("model.layers.{}.{}", index, part); }

}  // namespace

NormOptions norm_options(const ModelConfig& config) {
  return {.kind = config.norm == "layernorm" ? NormKind::layer : NormKind::rms,
          .hidden = config.hidden_size,
          .epsilon = config.rms_norm_eps};
}

Block::Block(const ModelConfig& config, int index, const ExpertMap& map, int expert_rank)
    : index_(index),
      attention_norm_(layer_name(index, "input_layernorm"), norm_options(config)),
      attention_(layer_name(index, "self_attn"), attention_options(config)),
      ffn_norm_(layer_name(index, "post_attention_layernorm"), norm_options(config)) {
  const std::string prefix = layer_name(index, "mlp");
  if (is_moe_layer(config, index)) {
    moe_.emplace(prefix, moe_options(config), map, expert_rank);
  } else {
    ffn_.emplace(prefix, FfnOptions{.hidden = config.hidden_size,
                                    .width = config.intermediate_size,
                                    .activation = activation_named(config.hidden_act),
                                    .init_std = config.initializer_range});
  }
}

Task<Tensor> Block::forward(LaneContext& ctx, Tensor x, Sequences sequences, Saved& saved) const {
  ctx.lane.enter("attention", index_);
  const Tensor normed = attention_norm_.forward(ctx, x, saved.attention_norm);
  const Tensor attended = attention_.forward(ctx, normed, sequences, saved.attention);
  ctx.kernels.add(x, attended, attended);
  Task<Tensor> rest = ffn_part(ctx, attended, saved);
  const Tensor y = co_await rest;
  co_return y;
}

Task<Tensor> Block::decode(LaneContext& ctx, Tensor x, Sequences sequences, KvCache& cache) const {
  ctx.lane.enter("attention", index_);
  Saved scratch;
  const Tensor normed = attention_norm_.forward(ctx, x, scratch.attention_norm);
  const Tensor attended = attention_.decode(ctx, normed, sequences, cache);
  ctx.kernels.add(x, attended, attended);
  Task<Tensor> rest = ffn_part(ctx, attended, scratch);
  const Tensor y = co_await rest;
  co_return y;
}

Task<Tensor> Block::ffn_part(LaneContext& ctx, Tensor h, Saved& saved) const {
  const Tensor normed = ffn_norm_.forward(ctx, h, saved.ffn_norm);
  Tensor y;
  if (moe_) {
    Task<Tensor> mixture = moe_->forward(ctx, normed, saved.moe);
    y = co_await mixture;
  } else {
    ctx.lane.enter("ffn");
    y = ffn_->forward(ctx, normed, saved.ffn);
  }
  ctx.kernels.add(h, y, y);
  co_return y;
}

Task<void> Block::backward(LaneContext& ctx, Saved& saved, Tensor dy, Tensor dx) {
  ctx.lane.position.layer = index_;
  Tensor d_normed;
  if (moe_) {
    Task<Tensor> mixture = moe_->backward(ctx, saved.moe, dy);
    d_normed = co_await mixture;
  } else {
    ctx.lane.enter("ffn gradient");
    d_normed = ffn_->input_grad(ctx, saved.ffn, dy);
    defer(ctx, "ffn weights", [this, &ctx, &saved] { ffn_->weight_grad(ctx, saved.ffn); });
  }
  ctx.lane.enter("attention gradient");
  const Tensor dh = ffn_norm_.input_grad(ctx, saved.ffn_norm, d_normed);
  ctx.kernels.add(dh, dy, dh);
  const Tensor d_attention_in = attention_.input_grad(ctx, saved.attention, dh);
  ctx.kernels.add(dh, attention_norm_.input_grad(ctx, saved.attention_norm, d_attention_in), dx);
  defer(ctx, "attention weights", [this, &ctx, &saved] {
    attention_norm_.weight_grad(ctx, saved.attention_norm);
    attention_.weight_grad(ctx, saved.attention);
    ffn_norm_.weight_grad(ctx, saved.ffn_norm);
  });
}

void Block::each_parameter(const ParameterVisitor& visit) {
  attention_norm_.each_parameter(visit);
  attention_.each_parameter(visit);
  ffn_norm_.each_parameter(visit);
  if (moe_) moe_->each_parameter(visit);
  if (ffn_) ffn_->each_parameter(visit);
}

}  // namespace cadre
