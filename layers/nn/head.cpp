// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/head.hpp"

namespace cadre {

Head::Head(const std::string& prefix, int64_t hidden, int64_t vocabulary, double init_std)
    : projection_(prefix, hidden, vocabulary, init_std) {}

Tensor Head::logits(Context& ctx, const Tensor& x) const {
  Linear::Saved unused;
  return projection_.forward(ctx, x, unused);
}

Tensor Head::forward(Context& ctx, const Tensor& x, const Tensor& targets, Saved& saved) const {
  saved.logits = projection_.forward(ctx, x, saved.projection);
  saved.targets = targets;
  const Tensor losses = ctx.arena.take("head", ctx.dtype, {x.dim(0)});
  ctx.kernels.cross_entropy(saved.logits, targets, losses);
  return losses;
}

Tensor Head::input_grad(Context& ctx, Saved& saved, double scale) const {
  ctx.kernels.cross_entropy_grad(saved.logits, saved.targets, scale, saved.logits);
  return projection_.input_grad(ctx, saved.projection, saved.logits);
}

}  // namespace cadre
