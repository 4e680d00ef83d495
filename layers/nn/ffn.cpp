// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/ffn.hpp"

#include "comm/base/check.hpp"

namespace cadre {
namespace {

Parameter make_up(const std::string& prefix, const FfnOptions& options) {
  const std::string gate_name = fmt::format("{}.{}.weight", prefix, options.names.gate);
  const std::string up_name = fmt::format("{}.{}.weight", prefix, options.names.up);
  if (options.gated) {
    return make_weight({{gate_name, options.width}, {up_name, options.width}}, options.hidden, options.init_std,
                       options.placement);
  }
  return make_weight({{up_name, options.width}}, options.hidden, options.init_std, options.placement);
}

Parameter make_down(const std::string& prefix, const FfnOptions& options) {
  return make_weight({{fmt::format("{}.{}.weight", prefix, options.names.down), options.hidden}}, options.width,
                     options.init_std, options.placement);
}

// The two halves of gate_up[T,2F], f(gate), and zeros: what a gate other than that of SwiGLU is computed with.
struct Halves {
  Tensor gate;
  Tensor activated;
  Tensor up;
  Tensor zeros;

  Halves(Context& ctx, const FfnOptions& options, const Tensor& gate_up) {
    const int64_t width = options.width;
    const auto take = [&] { return ctx.arena.take("ffn", ctx.dtype, {gate_up.dim(0), width}); };
    gate = take(), activated = take(), up = take(), zeros = take();
    ctx.kernels.copy_columns({gate_up, 0, width}, {gate, 0, width});
    ctx.kernels.copy_columns({gate_up, width, width}, {up, 0, width});
    ctx.kernels.activation(options.activation, gate, activated);
    ctx.kernels.memory().fill(zeros.raw(), std::byte{0}, zeros.bytes());
  }
};

// y = up f(gate) + (1 - up) 0
void gated_activation(Context& ctx, const FfnOptions& options, const Tensor& gate_up, const Tensor& y) {
  const ArenaScope scope(ctx.arena);
  const Halves halves(ctx, options, gate_up);
  ctx.kernels.blend(halves.up, halves.activated, halves.zeros, y);
}

void gated_activation_grad(Context& ctx, const FfnOptions& options, const Tensor& gate_up, const Tensor& dy,
                           const Tensor& d_gate_up) {
  const ArenaScope scope(ctx.arena);
  const int64_t width = options.width;
  const Halves halves(ctx, options, gate_up);
  const auto take = [&] { return ctx.arena.take("ffn", ctx.dtype, {gate_up.dim(0), width}); };
  const Tensor d_up = take();
  const Tensor d_gate = take();
  const Tensor unused = take();
  ctx.kernels.blend_grad(halves.up, halves.activated, halves.zeros, dy, d_up, d_gate, unused);
  ctx.kernels.activation_grad(options.activation, halves.gate, d_gate, d_gate);
  ctx.kernels.copy_columns({d_gate, 0, width}, {d_gate_up, 0, width});
  ctx.kernels.copy_columns({d_up, 0, width}, {d_gate_up, width, width});
}

}  // namespace

Activation activation_named(const std::string& name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  CADRE_CHECK(name == "silu", fmt::format("hidden_act = {}, allowed: silu | gelu | relu", name));
  return Activation::silu;
}

Tensor activate(Context& ctx, const FfnOptions& options, const Tensor& up_out) {
  const Tensor inner = ctx.arena.take("ffn", ctx.dtype, {up_out.dim(0), options.width});
  if (!options.gated) {
    ctx.kernels.activation(options.activation, up_out, inner);
  } else if (options.activation == Activation::silu) {
    ctx.kernels.swiglu(up_out, inner);
  } else {
    gated_activation(ctx, options, up_out, inner);
  }
  return inner;
}

Tensor activate_grad(Context& ctx, const FfnOptions& options, const Tensor& up_out, const Tensor& d_inner) {
  if (!options.gated) {
    ctx.kernels.activation_grad(options.activation, up_out, d_inner, d_inner);
    return d_inner;
  }
  const Tensor d_gate_up = ctx.arena.take("ffn", ctx.dtype, {up_out.dim(0), 2 * options.width});
  if (options.activation == Activation::silu) {
    ctx.kernels.swiglu_grad(up_out, d_inner, d_gate_up);
  } else {
    gated_activation_grad(ctx, options, up_out, d_inner, d_gate_up);
  }
  return d_gate_up;
}

Ffn::Ffn(const std::string& prefix, const FfnOptions& options)
    : options_(options), up_(make_up(prefix, options)), down_(make_down(prefix, options)) {}

Tensor Ffn::forward(Context& ctx, const Tensor& x, Saved& saved) const {
  const Tensor y = ctx.arena.take("ffn", ctx.dtype, {x.dim(0), options_.hidden});
  forward_into(ctx, x, saved, y);
  return y;
}

Tensor Ffn::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const Tensor dx = ctx.arena.take("ffn", ctx.dtype, {dy.dim(0), options_.hidden});
  input_grad_into(ctx, saved, dy, dx);
  return dx;
}

void Ffn::forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const {
  saved.up_out = up_.forward(ctx, x, saved.up);
  const Arena::Mark mark = ctx.arena.mark();
  down_.forward_into(ctx, activate(ctx, options_, saved.up_out), saved.down, y);
  if (!ctx.recompute.activations) return;
  ctx.arena.release(mark);
  saved.down.x = Tensor();
}

void Ffn::input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const {
  const Tensor d_inner = down_.input_grad(ctx, saved.down, dy);
  up_.input_grad_into(ctx, saved.up, activate_grad(ctx, options_, saved.up_out, d_inner), dx, Accumulate::no);
}

void Ffn::weight_grad(Context& ctx, const Saved& saved) {
  up_.weight_grad(ctx, saved.up);
  const ArenaScope scope(ctx.arena);
  Linear::Saved down = saved.down;
  if (!down.x.defined()) down.x = activate(ctx, options_, saved.up_out);
  down_.weight_grad(ctx, down);
}

void Ffn::each_parameter(const ParameterVisitor& visit) {
  up_.each_parameter(visit);
  down_.each_parameter(visit);
}

namespace {

Tensor taken_like(Context& ctx, const Tensor& other) {
  return ctx.arena.take("ffn", ctx.dtype, {other.dim(0), other.dim(1)});
}

}  // namespace

HighwayFfn::HighwayFfn(const std::string& prefix, const FfnOptions& options)
    : ffn_(prefix, options), gate_(prefix + ".highway", options.hidden, options.hidden, options.init_std) {}

Tensor HighwayFfn::forward(Context& ctx, const Tensor& x, Saved& saved) const {
  saved.x = x;
  saved.inner = ffn_.forward(ctx, x, saved.ffn);
  saved.g = taken_like(ctx, x);
  ctx.kernels.sigmoid(gate_.forward(ctx, x, saved.gate), saved.g);
  const Tensor y = taken_like(ctx, x);
  ctx.kernels.blend(saved.g, saved.inner, x, y);
  return y;
}

Tensor HighwayFfn::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const Tensor dg = taken_like(ctx, dy);
  const Tensor d_inner = taken_like(ctx, dy);
  const Tensor dx = taken_like(ctx, dy);
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
