// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/linear.hpp"

#include <utility>

namespace cadre {

Linear::Linear(const std::string& prefix, int64_t in, int64_t out, double init_std)
    : Linear(make_weight({{prefix + ".weight", out}}, in, init_std)) {}

Linear::Linear(Parameter weight) : weight_(std::move(weight)) {}

Tensor Linear::forward(Context& ctx, const Tensor& x, Saved& saved) const {
  const Tensor y = ctx.arena.take("linear", ctx.dtype, {x.dim(0), weight_.value.dim(0)});
  forward_into(ctx, x, saved, y);
  return y;
}

Tensor Linear::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const Tensor dx = ctx.arena.take("linear", ctx.dtype, {dy.dim(0), weight_.value.dim(1)});
  input_grad_into(ctx, saved, dy, dx, Accumulate::no);
  return dx;
}

void Linear::forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const {
  saved.x = x;
  ctx.kernels.linear(x, weight_, y);
}

void Linear::input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx,
                             Accumulate accumulate) const {
  saved.dy = dy;
  ctx.kernels.linear_input_grad(dy, weight_, dx, accumulate);
}

void Linear::weight_grad(Context& ctx, const Saved& saved) {
  if (weight_.frozen) return;
  write_grad(weight_, [&](Accumulate accumulate) {
    ctx.kernels.linear_weight_grad(saved.x, saved.dy, weight_.grad, accumulate);
  });
}

}  // namespace cadre
