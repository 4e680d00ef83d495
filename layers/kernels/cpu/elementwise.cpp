// SPDX-License-Identifier: Apache-2.0
// Element-wise functions: one pass, no temporary.
#include "layers/kernels/cpu/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

HWY_INLINE Float silu(Float x) { return hn::Mul(x, logistic(x).value); }

HWY_INLINE Float silu_slope(Float x) {
  const Logistic s = logistic(x);
  return hn::Mul(s.value, hn::MulAdd(x, s.complement, splat(1.0F)));
}

// y[i] = function(x[i])
template <class Function>
HWY_INLINE void map(const float* x, float* y, size_t count, Function&& function) {
  for_each_vector(count, [&](size_t i, auto lanes) HWY_ATTR { lanes.store(function(lanes.load(x + i)), y + i); });
}

// y[i] = function(a[i], b[i])
template <class Function>
HWY_INLINE void map(const float* a, const float* b, float* y, size_t count, Function&& function) {
  for_each_vector(count, [&](size_t i, auto lanes)
                             HWY_ATTR { lanes.store(function(lanes.load(a + i), lanes.load(b + i)), y + i); });
}

void map_relu(const float* x, float* y, size_t count) {
  // Not Max: a NaN must stay a NaN.
  map(x, y, count, [](Float v) HWY_ATTR { return hn::IfThenElse(hn::Lt(v, splat(0.0F)), splat(0.0F), v); });
}
void map_gelu(const float* x, float* y, size_t count) {
  map(x, y, count, [](Float v) HWY_ATTR { return hn::Mul(v, normal(v).distribution); });
}
void map_silu(const float* x, float* y, size_t count) {
  map(x, y, count, [](Float v) HWY_ATTR { return silu(v); });
}
void map_sigmoid(const float* x, float* y, size_t count) {
  map(x, y, count, [](Float v) HWY_ATTR { return logistic(v).value; });
}

void map_relu_grad(const float* x, const float* dy, float* dx, size_t count) {
  map(x, dy, dx, count, [](Float v, Float g) HWY_ATTR { return hn::IfThenElseZero(hn::Gt(v, splat(0.0F)), g); });
}
void map_gelu_grad(const float* x, const float* dy, float* dx, size_t count) {
  map(x, dy, dx, count, [](Float v, Float g) HWY_ATTR {
    const Normal n = normal(v);
    return hn::Mul(g, hn::MulAdd(v, n.density, n.distribution));
  });
}
void map_silu_grad(const float* x, const float* dy, float* dx, size_t count) {
  map(x, dy, dx, count, [](Float v, Float g) HWY_ATTR { return hn::Mul(g, silu_slope(v)); });
}
void map_sigmoid_grad(const float* y, const float* dy, float* dx, size_t count) {
  map(y, dy, dx, count, [](Float s, Float g) HWY_ATTR { return hn::Mul(hn::Mul(g, s), hn::Sub(splat(1.0F), s)); });
}

void map_clip(float limit, const float* x, float* y, size_t count) {
  // Not Min and Max: a NaN must stay a NaN.
  map(x, y, count, [=](Float v) HWY_ATTR {
    const Float above = hn::IfThenElse(hn::Gt(v, splat(limit)), splat(limit), v);
    return hn::IfThenElse(hn::Lt(above, splat(-limit)), splat(-limit), above);
  });
}
void map_clip_grad(float limit, const float* x, const float* dy, float* dx, size_t count) {
  map(x, dy, dx, count,
      [=](Float v, Float g) HWY_ATTR { return hn::IfThenElseZero(hn::Le(hn::Abs(v), splat(limit)), g); });
}

void map_add(const float* a, const float* b, float* out, size_t count) {
  map(a, b, out, count, [](Float u, Float v) HWY_ATTR { return hn::Add(u, v); });
}

void map_scaled_sum(float alpha, const float* a, float beta, const float* b, float* out, size_t count) {
  map(a, b, out, count,
      [=](Float u, Float v) HWY_ATTR { return hn::MulAdd(splat(alpha), u, hn::Mul(splat(beta), v)); });
}

void map_blend(const float* g, const float* a, const float* b, float* out, size_t count) {
  for_each_vector(count, [&](size_t i, auto lanes) HWY_ATTR {
    const Float below = lanes.load(b + i);
    lanes.store(hn::MulAdd(lanes.load(g + i), hn::Sub(lanes.load(a + i), below), below), out + i);
  });
}

void map_blend_grad(const float* g, const float* a, const float* b, const float* dout, float* dg, float* da, float* db,
                    size_t count) {
  for_each_vector(count, [&](size_t i, auto lanes) HWY_ATTR {
    const Float grad = lanes.load(dout + i);
    const Float to_a = hn::Mul(grad, lanes.load(g + i));
    lanes.store(hn::Mul(grad, hn::Sub(lanes.load(a + i), lanes.load(b + i))), dg + i);
    lanes.store(to_a, da + i);
    lanes.store(hn::Sub(grad, to_a), db + i);
  });
}

void map_swiglu(const float* gate_up, float* y, size_t num_rows, size_t width) {
  for (size_t t = 0; t < num_rows; ++t, gate_up += 2 * width, y += width) {
    map(gate_up, gate_up + width, y, width, [](Float gate, Float up) HWY_ATTR { return hn::Mul(silu(gate), up); });
  }
}

void map_swiglu_grad(const float* gate_up, const float* dy, float* d_gate_up, size_t num_rows, size_t width) {
  for (size_t t = 0; t < num_rows; ++t, gate_up += 2 * width, dy += width, d_gate_up += 2 * width) {
    for_each_vector(width, [&](size_t i, auto lanes) HWY_ATTR {
      const Float gate = lanes.load(gate_up + i);
      const Float up = lanes.load(gate_up + width + i);
      const Float grad = lanes.load(dy + i);
      const Logistic s = logistic(gate);
      const Float gated = hn::Mul(gate, s.value);
      const Float slope = hn::MulAdd(gated, s.complement, s.value);
      lanes.store(hn::Mul(hn::Mul(grad, up), slope), d_gate_up + i);
      lanes.store(hn::Mul(grad, gated), d_gate_up + width + i);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(map_relu);
HWY_EXPORT(map_gelu);
HWY_EXPORT(map_silu);
HWY_EXPORT(map_sigmoid);
HWY_EXPORT(map_relu_grad);
HWY_EXPORT(map_gelu_grad);
HWY_EXPORT(map_silu_grad);
HWY_EXPORT(map_sigmoid_grad);
HWY_EXPORT(map_clip);
HWY_EXPORT(map_clip_grad);
HWY_EXPORT(map_add);
HWY_EXPORT(map_scaled_sum);
HWY_EXPORT(map_blend);
HWY_EXPORT(map_blend_grad);
HWY_EXPORT(map_swiglu);
HWY_EXPORT(map_swiglu_grad);

using cpu::count_of;
using cpu::for_pieces;
using cpu::width_of;

void CpuKernels::activation(Activation kind, const Tensor& x, const Tensor& y) const {
  for_pieces(threads_, count_of(x), 1, [&](size_t first, size_t count) {
    const float* in = x.data<float>() + first;
    float* out = y.data<float>() + first;
    switch (kind) {
      case Activation::relu: return HWY_DYNAMIC_DISPATCH(map_relu)(in, out, count);
      case Activation::gelu: return HWY_DYNAMIC_DISPATCH(map_gelu)(in, out, count);
      case Activation::silu: return HWY_DYNAMIC_DISPATCH(map_silu)(in, out, count);
    }
  });
}

void CpuKernels::activation_grad(Activation kind, const Tensor& x, const Tensor& dy, const Tensor& dx) const {
  for_pieces(threads_, count_of(x), 1, [&](size_t first, size_t count) {
    const float* in = x.data<float>() + first;
    const float* grad = dy.data<float>() + first;
    float* out = dx.data<float>() + first;
    switch (kind) {
      case Activation::relu: return HWY_DYNAMIC_DISPATCH(map_relu_grad)(in, grad, out, count);
      case Activation::gelu: return HWY_DYNAMIC_DISPATCH(map_gelu_grad)(in, grad, out, count);
      case Activation::silu: return HWY_DYNAMIC_DISPATCH(map_silu_grad)(in, grad, out, count);
    }
  });
}

void CpuKernels::swiglu(const Tensor& gate_up, const Tensor& y) const {
  const size_t width = width_of(y);
  for_pieces(threads_, cpu::num_rows_of(y), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_swiglu)
    (gate_up.data<float>() + first * 2 * width, y.data<float>() + first * width, count, width);
  });
}

void CpuKernels::swiglu_grad(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) const {
  const size_t width = width_of(dy);
  for_pieces(threads_, cpu::num_rows_of(dy), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_swiglu_grad)
    (gate_up.data<float>() + first * 2 * width, dy.data<float>() + first * width,
     d_gate_up.data<float>() + first * 2 * width, count, width);
  });
}

void CpuKernels::add(const Tensor& a, const Tensor& b, const Tensor& out) const {
  for_pieces(threads_, count_of(out), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_add)(a.data<float>() + first, b.data<float>() + first, out.data<float>() + first, count);
  });
}

void CpuKernels::scaled_sum(double alpha, const Tensor& a, double beta, const Tensor& b, const Tensor& out) const {
  for_pieces(threads_, count_of(out), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_scaled_sum)
    (static_cast<float>(alpha), a.data<float>() + first, static_cast<float>(beta), b.data<float>() + first,
     out.data<float>() + first, count);
  });
}

void CpuKernels::sigmoid(const Tensor& x, const Tensor& y) const {
  for_pieces(threads_, count_of(x), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_sigmoid)(x.data<float>() + first, y.data<float>() + first, count);
  });
}

void CpuKernels::blend(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& out) const {
  for_pieces(threads_, count_of(out), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_blend)
    (g.data<float>() + first, a.data<float>() + first, b.data<float>() + first, out.data<float>() + first, count);
  });
}

void CpuKernels::blend_grad(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& dout, const Tensor& dg,
                            const Tensor& da, const Tensor& db) const {
  for_pieces(threads_, count_of(dout), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_blend_grad)
    (g.data<float>() + first, a.data<float>() + first, b.data<float>() + first, dout.data<float>() + first,
     dg.data<float>() + first, da.data<float>() + first, db.data<float>() + first, count);
  });
}

void CpuKernels::clip(double limit, const Tensor& x, const Tensor& y) const {
  for_pieces(threads_, count_of(x), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_clip)
    (static_cast<float>(limit), x.data<float>() + first, y.data<float>() + first, count);
  });
}

void CpuKernels::clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const {
  for_pieces(threads_, count_of(x), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_clip_grad)
    (static_cast<float>(limit), x.data<float>() + first, dy.data<float>() + first, dx.data<float>() + first, count);
  });
}

void CpuKernels::sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const {
  for_pieces(threads_, count_of(y), 1, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(map_sigmoid_grad)
    (y.data<float>() + first, dy.data<float>() + first, dx.data<float>() + first, count);
  });
}

}  // namespace cadre
#endif  // HWY_ONCE
