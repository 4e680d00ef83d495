// SPDX-License-Identifier: Apache-2.0
#include "layers/model/block.hpp"

#include <algorithm>
#include <functional>

#include "comm/base/check.hpp"
#include "layers/model/family.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

MoeOptions moe_options(const ModelConfig& config) {
  const ExpertOptions experts = expert_options(config);
  const TensorNames& names = family_of(config).names;
  return {.hidden = config.hidden_size,
          .expert_width = config.moe_intermediate_size,
          .expert_kinds = experts.kinds,
          .inner_experts = experts.inner_experts,
          .inner_top_k = experts.inner_top_k,
          .shared_width = shared_width(config),
          .shared_scale = config.shared_expert_mean
                              ? 1.0 / static_cast<double>(std::max<int64_t>(1, config.n_shared_experts))
                              : 1.0,
          .activation = activation_named(config.hidden_act),
          .gated = config.ffn_gate,
          .init_std = config.initializer_range,
          .router = router_options(config),
          .expert_names = names.expert,
          .shared_name = names.shared,
          .shared_gate_name = names.shared_gate};
}

}  // namespace

NormOptions norm_options(const ModelConfig& config) {
  CADRE_CHECK(config.norm == "layernorm" || config.norm == "rmsnorm", "no norm has the name " + config.norm);
  return {.kind = config.norm == "layernorm" ? NormKind::layer : NormKind::rms,
          .hidden = config.hidden_size,
          .epsilon = config.rms_norm_eps};
}

std::string layer_name(int index, std::string_view part) { return fmt::format("model.layers.{}.{}", index, part); }

Block::Block(const ModelConfig& config, int index, const ExpertMap& map, int expert_rank)
    : index_(index),
      is_post_(config.norm_position == NormPosition::post),
      attention_norm_(layer_name(index, "input_layernorm"), norm_options(config)),
      attention_(layer_name(index, "self_attn"), config),
      ffn_norm_(layer_name(index, "post_attention_layernorm"), norm_options(config)) {
  const bool is_moe = is_moe_layer(config, index);
  const std::string prefix = layer_name(index, is_moe ? family_of(config).names.mixture : "mlp");
  const FfnOptions dense = {.hidden = config.hidden_size,
                            .width = config.intermediate_size,
                            .activation = activation_named(config.hidden_act),
                            .gated = config.ffn_gate,
                            .init_std = config.initializer_range};
  if (is_moe) moe_.emplace(prefix, moe_options(config), map, expert_rank);
  if (config.ffn_highway) {
    highway_.emplace(is_moe ? prefix + ".behind" : prefix, dense);
  } else if (!is_moe) {
    ffn_.emplace(prefix, dense);
  }
}

Task<Tensor> Block::forward(LaneContext& ctx, Tensor x, Sequences sequences, Saved& saved) const {
  saved.x = x;
  saved.sequences = sequences;
  const Tensor h = ctx.recompute.attention ? forget_attention(ctx, saved) : attend(ctx, saved);
  Task<Tensor> rest = ffn_part(ctx, h, saved);
  const Tensor y = co_await rest;
  co_return y;
}

Task<Tensor> Block::decode(LaneContext& ctx, Tensor x, NextTokens tokens, KvCache& cache) const {
  Saved scratch;
  const Tensor h =
      attention_part(ctx, x, scratch, [&](const Tensor& in) { return attention_.decode(ctx, in, tokens, cache); });
  Task<Tensor> rest = ffn_part(ctx, h, scratch);
  const Tensor y = co_await rest;
  if (moe_ && ctx.routed != nullptr) {
    ctx.routed->tokens += x.dim(0);
    ctx.routed->rerouted += scratch.moe.router.num_rerouted;
    const std::vector<int64_t>& counts = scratch.moe.router.counts;
    std::vector<int64_t>& slots = ctx.routed->slots.try_emplace(index_, counts.size(), 0).first->second;
    std::ranges::transform(counts, slots, slots.begin(), std::plus<>());
  }
  co_return y;
}

Tensor Block::attend(LaneContext& ctx, Saved& saved) const {
  return attention_part(ctx, saved.x, saved, [&](const Tensor& in) {
    return attention_.forward(ctx, in, saved.sequences, saved.attention);
  });
}

// The same, of which only the result is kept.
Tensor Block::forget_attention(LaneContext& ctx, Saved& saved) const {
  const Tensor h = ctx.arena.take("attention", ctx.dtype, {saved.x.dim(0), saved.x.dim(1)});
  const ArenaScope scope(ctx.arena);
  ctx.kernels.copy(attend(ctx, saved), h);
  saved.attention = {};
  saved.attention_norm = {};
  return h;
}

Tensor Block::attention_part(LaneContext& ctx, const Tensor& x, Saved& saved,
                             const std::function<Tensor(const Tensor&)>& attend) const {
  ctx.lane.enter("attention", index_);
  const Tensor attended = attend(is_post_ ? x : attention_norm_.forward(ctx, x, saved.attention_norm));
  ctx.kernels.add(x, attended, attended);
  return is_post_ ? attention_norm_.forward(ctx, attended, saved.attention_norm) : attended;
}

Task<Tensor> Block::ffn_part(LaneContext& ctx, Tensor h, Saved& saved) const {
  const Tensor in = is_post_ ? h : ffn_norm_.forward(ctx, h, saved.ffn_norm);
  Tensor y = in;
  if (moe_) {
    Task<Tensor> mixture = moe_->forward(ctx, in, saved.moe);
    y = co_await mixture;
  }
  ctx.lane.enter("ffn");
  if (highway_) {
    const Tensor behind = highway_->forward(ctx, y, saved.highway);
    y = behind;
  }
  if (ffn_) y = ffn_->forward(ctx, in, saved.ffn);
  ctx.kernels.add(h, y, y);
  co_return is_post_ ? ffn_norm_.forward(ctx, y, saved.ffn_norm) : y;
}

// dy of the mixture or the dense network, with what is behind, to d of its input.
Task<Tensor> Block::ffn_grad(LaneContext& ctx, Saved& saved, Tensor dy) {
  ctx.lane.enter("ffn gradient");
  if (ffn_) {
    const Tensor dx = ffn_->input_grad(ctx, saved.ffn, dy);
    defer(ctx, "ffn weights", [this, &ctx, &saved] { ffn_->weight_grad(ctx, saved.ffn); });
    co_return dx;
  }
  Tensor d_mixture = dy;
  if (highway_) {
    const Tensor dx = highway_->input_grad(ctx, saved.highway, dy);
    defer(ctx, "ffn weights", [this, &ctx, &saved] { highway_->weight_grad(ctx, saved.highway); });
    d_mixture = dx;
  }
  if (!moe_) co_return d_mixture;
  Task<Tensor> mixture = moe_->backward(ctx, saved.moe, d_mixture);
  const Tensor dx = co_await mixture;
  co_return dx;
}

Task<void> Block::backward(LaneContext& ctx, Saved& saved, Tensor dy, Tensor dx) {
  ctx.lane.position.layer = index_;
  const Tensor d_sum = is_post_ ? ffn_norm_.input_grad(ctx, saved.ffn_norm, dy) : dy;
  Task<Tensor> through_ffn = ffn_grad(ctx, saved, d_sum);
  const Tensor d_in = co_await through_ffn;
  if (ctx.recompute.attention) attend(ctx, saved);
  ctx.lane.enter("attention gradient");
  const Tensor dh = is_post_ ? d_in : ffn_norm_.input_grad(ctx, saved.ffn_norm, d_in);
  ctx.kernels.add(dh, d_sum, dh);
  const Tensor d_attended = is_post_ ? attention_norm_.input_grad(ctx, saved.attention_norm, dh) : dh;
  Tensor d_attention_in = attention_.input_grad(ctx, saved.attention, d_attended);
  if (!is_post_) d_attention_in = attention_norm_.input_grad(ctx, saved.attention_norm, d_attention_in);
  ctx.kernels.add(d_attended, d_attention_in, dx);
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
  if (highway_) highway_->each_parameter(visit);
}

}  // namespace cadre
