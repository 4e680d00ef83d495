// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/router.hpp"

namespace cadre {

Router::Router(const std::string& prefix, const RouterOptions& options)
    : options_(options),
      gate_(prefix, options.hidden, options.num_experts, options.init_std),
      bias_(make_vector(prefix + ".e_score_correction_bias", options.num_experts, Init::Kind::zeros,
                        Placement::buffer)) {}

void Router::forward(Context& ctx, const Tensor& x, Saved& saved) const {
  const int64_t num_tokens = x.dim(0);
  const Tensor logits = gate_.forward(ctx, x, saved.gate);
  saved.scores = ctx.arena.take("router", ctx.dtype, {num_tokens, options_.num_experts});
  saved.ids = ctx.arena.take("router", DType::i32, {num_tokens, options_.top_k});
  saved.weights = ctx.arena.take("router", ctx.dtype, {num_tokens, options_.top_k});
  if (options_.score == ScoreFunction::softmax) {
    ctx.kernels.softmax(logits, saved.scores);
  } else {
    ctx.kernels.sigmoid(logits, saved.scores);
  }
  select(ctx, saved);
  if (ctx.arena.is_dry_run()) return;
  routing_weights(options_.weights, saved.scores, saved.ids, saved.weights);
  saved.counts = count_experts(saved.ids, options_.num_experts);
}

void Router::select(Context& ctx, Saved& saved) const {
  const Tensor bias = options_.selection_bias ? bias_.value : Tensor();
  if (!options_.groups.limits()) return ctx.kernels.top_k(saved.scores, bias, saved.ids);
  ArenaScope scope(ctx.arena);
  const Tensor eligible = ctx.arena.take("router", ctx.dtype, {saved.scores.dim(0), options_.num_experts});
  if (!ctx.arena.is_dry_run()) limit_to_groups(options_.groups, saved.scores, bias, eligible);
  ctx.kernels.top_k(eligible, Tensor(), saved.ids);
}

Tensor Router::input_grad(Context& ctx, Saved& saved, const Tensor& dweights, const BalanceLoss& balance) const {
  const Tensor dscores = ctx.arena.take("router", ctx.dtype, {saved.scores.dim(0), options_.num_experts});
  const Tensor dlogits = ctx.arena.take("router", ctx.dtype, {saved.scores.dim(0), options_.num_experts});
  if (!ctx.arena.is_dry_run()) {
    routing_weights_grad(options_.weights, saved.scores, saved.ids, dweights, dscores);
    if (balance.alpha > 0.0) balance.add_grad(saved.scores, dscores);
  }
  if (options_.score == ScoreFunction::softmax) {
    ctx.kernels.softmax_grad(saved.scores, dscores, dlogits);
  } else {
    ctx.kernels.sigmoid_grad(saved.scores, dscores, dlogits);
  }
  return gate_.input_grad(ctx, saved.gate, dlogits);
}

void Router::each_parameter(const ParameterVisitor& visit) {
  gate_.each_parameter(visit);
  if (options_.selection_bias) visit(bias_);
}

void Router::update_bias(std::span<const int64_t> global_counts, double rate) {
  if (!options_.selection_bias || bias_.frozen) return;
  update_selection_bias(global_counts, rate, bias_.value);
  ++bias_.version;
}

}  // namespace cadre
