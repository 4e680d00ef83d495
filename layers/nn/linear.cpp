// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/linear.hpp"

#include <utility>

#include "layers/nn/low_rank.hpp"

namespace cadre {

Linear::Linear(const std::string& prefix, int64_t in, int64_t out, double init_std, Bias bias)
    : Linear(make_weight({{prefix + ".weight", out}}, in, init_std)) {
  if (bias == Bias::added) bias_.emplace(make_vector(prefix + ".bias", out, Init::Kind::zeros));
}

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
  saved.low_rank.dropout = ctx.dropout;
  for (const LowRank& added : weight_.low_rank) add_low_rank(ctx, added, saved.low_rank.dropout, x, y);
  if (bias_) add_bias(ctx, y);
}

void Linear::add_bias(Context& ctx, const Tensor& y) const {
  const int64_t width = y.dim(1);
  const Tensor rows = ctx.arena.take("linear", ctx.dtype, {y.dim(0), width});
  ctx.kernels.copy_columns({bias_->value.reshape({1, width}), 0, width}, {rows, 0, width});
  ctx.kernels.add(y, rows, y);
}

void Linear::input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx,
                             Accumulate accumulate) const {
  saved.dy = dy;
  ctx.kernels.linear_input_grad(dy, weight_, dx, accumulate);
  saved.low_rank.dh.clear();
  for (const LowRank& added : weight_.low_rank) {
    saved.low_rank.dh.push_back(add_low_rank_input_grad(ctx, added, saved.low_rank.dropout, dy, dx));
  }
  if (!bias_) return;
  const int64_t width = dy.dim(1);
  saved.d_bias = ctx.arena.take("linear", ctx.dtype, {1, width});
  if (dy.dim(0) == 0) {
    ctx.kernels.memory().fill(saved.d_bias.raw(), std::byte{0}, saved.d_bias.bytes());
  } else {
    ctx.kernels.sum_columns({dy, 0, width}, {saved.d_bias, 0, width});
  }
}

void Linear::weight_grad(Context& ctx, const Saved& saved) {
  if (bias_ && !bias_->frozen) {
    write_grad(*bias_, [&](Accumulate accumulate) {
      const Tensor grad = bias_->grad.reshape({1, bias_->grad.dim(0)});
      if (accumulate == Accumulate::yes) return ctx.kernels.add(grad, saved.d_bias, grad);
      ctx.kernels.copy_columns({saved.d_bias, 0, grad.dim(1)}, {grad, 0, grad.dim(1)});
    });
  }
  for (size_t i = 0; i < weight_.low_rank.size(); ++i) {
    low_rank_weight_grad(ctx, weight_.low_rank[i], saved.low_rank.dropout, saved.x, saved.low_rank.dh[i], saved.dy);
  }
  if (weight_.frozen) return;
  write_grad(weight_, [&](Accumulate accumulate) {
    ctx.kernels.linear_weight_grad(saved.x, saved.dy, weight_.grad, accumulate);
  });
}

}  // namespace cadre
