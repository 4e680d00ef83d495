// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/norm.hpp"

namespace cadre {

Norm::Norm(const std::string& prefix, const NormOptions& options)
    : options_(options), weight_(make_vector(prefix + ".weight", options.hidden, Init::Kind::ones)) {
  if (options.kind == NormKind::layer) bias_ = make_vector(prefix + ".bias", options.hidden, Init::Kind::zeros);
}

Tensor Norm::forward(Context& ctx, const Tensor& x, Saved& saved) const {
  const int64_t num_tokens = x.dim(0);
  const Tensor y = ctx.arena.take("norm", ctx.dtype, {num_tokens, options_.hidden});
  saved.x = x;
  saved.rstd = ctx.arena.take("norm", ctx.dtype, {num_tokens});
  if (options_.kind == NormKind::rms) {
    ctx.kernels.rms_norm(x, weight_.value, options_.epsilon, y, saved.rstd);
  } else {
    saved.mean = ctx.arena.take("norm", ctx.dtype, {num_tokens});
    ctx.kernels.layer_norm(x, weight_.value, bias_->value, options_.epsilon, y, saved.mean, saved.rstd);
  }
  return y;
}

Tensor Norm::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const Tensor dx = ctx.arena.take("norm", ctx.dtype, {dy.dim(0), options_.hidden});
  saved.dy = dy;
  if (options_.kind == NormKind::rms) {
    ctx.kernels.rms_norm_input_grad(dy, saved.x, weight_.value, saved.rstd, dx);
  } else {
    ctx.kernels.layer_norm_input_grad(dy, saved.x, weight_.value, saved.mean, saved.rstd, dx);
  }
  return dx;
}

void Norm::weight_grad(Context& ctx, const Saved& saved) {
  if (!weight_.grad.defined()) return;
  const Tensor& dweight = cleared_grad(ctx.kernels, weight_);
  if (options_.kind == NormKind::rms) {
    ctx.kernels.rms_norm_weight_grad(saved.dy, saved.x, saved.rstd, dweight);
  } else {
    ctx.kernels.layer_norm_weight_grad(saved.dy, saved.x, saved.mean, saved.rstd, dweight,
                                       cleared_grad(ctx.kernels, *bias_));
  }
}

void Norm::each_parameter(const ParameterVisitor& visit) {
  visit(weight_);
  if (bias_) visit(*bias_);
}

}  // namespace cadre
