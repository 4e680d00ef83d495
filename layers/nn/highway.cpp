// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/highway.hpp"

namespace cadre {
namespace {

Tensor like(Context& ctx, const Tensor& other) {
  return ctx.arena.take("ffn", ctx.dtype, {other.dim(0), other.dim(1)});
}

}  // namespace

HighwayFfn::HighwayFfn(const std::string& prefix, const FfnOptions& options)
    : ffn_(prefix, options), gate_(prefix + ".highway", options.hidden, options.hidden, options.init_std) {}

Tensor HighwayFfn::forward(Context& ctx, const Tensor& x, Saved& saved) const {
  saved.x = x;
  saved.inner = ffn_.forward(ctx, x, saved.ffn);
  saved.g = like(ctx, x);
  ctx.kernels.sigmoid(gate_.forward(ctx, x, saved.gate), saved.g);
  const Tensor y = like(ctx, x);
  ctx.kernels.blend(saved.g, saved.inner, x, y);
  return y;
}

Tensor HighwayFfn::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const Tensor dg = like(ctx, dy);
  const Tensor d_inner = like(ctx, dy);
  const Tensor dx = like(ctx, dy);
  ctx.kernels.blend_grad(saved.g, saved.inner, saved.x, dy, dg, d_inner, dx);
  ctx.kernels.sigmoid_grad(saved.g, dg, dg);
  gate_.input_grad_into(ctx, saved.gate, dg, dx, Accumulate::yes);
  ctx.kernels.add(dx, ffn_.input_grad(ctx, saved.ffn, d_inner), dx);
  return dx;
}

void HighwayFfn::weight_grad(Context& ctx, const Saved& saved) {
  ffn_.weight_grad(ctx, saved.ffn);
  gate_.weight_grad(ctx, saved.gate);
}

void HighwayFfn::each_parameter(const ParameterVisitor& visit) {
  ffn_.each_parameter(visit);
  gate_.each_parameter(visit);
}

}  // namespace cadre
