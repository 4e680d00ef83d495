// SPDX-License-Identifier: Apache-2.0
// Element bodies, and SwiGLU. kernels.hpp has the formulas.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "comm/base/dtype.hpp"
#include "layers/kernels/gpu/block.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

CADRE_DEVICE inline float logistic(float x) { return 1.0F / (1.0F + expf(-x)); }
CADRE_DEVICE inline float silu(float x) { return x * logistic(x); }
CADRE_DEVICE inline float silu_slope(float x) {
  const float s = logistic(x);
  return s + x * s * (1.0F - s);
}
// In fp64: erfc magnifies the rounding of its argument, and no model of the DeepSeek kind is slowed by it.
CADRE_DEVICE inline double normal_cdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }
CADRE_DEVICE inline double normal_density(double x) { return 0.39894228040143267794 * exp(-0.5 * x * x); }

CADRE_DEVICE inline float activate(Activation kind, float x) {
  switch (kind) {
    case Activation::relu: return x < 0.0F ? 0.0F : x;
    case Activation::gelu: return static_cast<float>(x * normal_cdf(x));
    case Activation::silu: return silu(x);
  }
  return x;
}

CADRE_DEVICE inline float slope(Activation kind, float x) {
  switch (kind) {
    case Activation::relu: return x > 0.0F ? 1.0F : 0.0F;
    case Activation::gelu: return static_cast<float>(normal_cdf(x) + x * normal_density(x));
    case Activation::silu: return silu_slope(x);
  }
  return x;
}

struct Activate {
  Activation kind;
  const float* x;
  float* y;
  CADRE_DEVICE void operator()(int64_t i) const { y[i] = activate(kind, x[i]); }
};

struct ActivateGrad {
  Activation kind;
  const float* x;
  const float* dy;
  float* dx;
  CADRE_DEVICE void operator()(int64_t i) const { dx[i] = dy[i] * slope(kind, x[i]); }
};

// A block a row.
struct SwiGlu {
  const float* gate_up;
  float* y;
  int64_t width;
  CADRE_DEVICE bool fours() const { return in_fours(width, gate_up, y); }
  CADRE_DEVICE int threads() const { return threads_for_columns(width, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* gates = gate_up + block.index() * 2 * width;
    float* out = y + block.index() * width;
    each_column(block, width, fours(), [&]<class V>(std::type_identity<V>, int64_t i) {
      at<V>(out, i) =
          by_float([](float gate, float up) { return silu(gate) * up; }, at<V>(gates, i), at<V>(gates + width, i));
    });
  }
};

// A block a row.
struct SwiGluGrad {
  const float* gate_up;
  const float* dy;
  float* d_gate_up;
  int64_t width;
  CADRE_DEVICE bool fours() const { return in_fours(width, gate_up, dy, d_gate_up); }
  CADRE_DEVICE int threads() const { return threads_for_columns(width, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* gates = gate_up + block.index() * 2 * width;
    const float* grads = dy + block.index() * width;
    float* d_gates = d_gate_up + block.index() * 2 * width;
    each_column(block, width, fours(), [&]<class V>(std::type_identity<V>, int64_t i) {
      const V gate = at<V>(gates, i);
      const V up = at<V>(gates + width, i);
      const V grad = at<V>(grads, i);
      at<V>(d_gates, i) = by_float([](float d, float g, float u) { return d * u * silu_slope(g); }, grad, gate, up);
      at<V>(d_gates + width, i) = by_float([](float d, float g) { return d * silu(g); }, grad, gate);
    });
  }
};

struct Zero {
  float* out;
  CADRE_DEVICE void operator()(int64_t i) const { out[i] = 0.0F; }
};

struct Add {
  const float* a;
  const float* b;
  float* out;
  CADRE_DEVICE bool fours(int64_t count) const { return in_fours(count, a, b, out); }
  template <class V = float>
  CADRE_DEVICE void operator()(int64_t i) const {
    at<V>(out, i) = by_float(Plus(), at<V>(a, i), at<V>(b, i));
  }
};

struct ScaledSum {
  float alpha;
  const float* a;
  float beta;
  const float* b;
  float* out;
  CADRE_DEVICE void operator()(int64_t i) const { out[i] = alpha * a[i] + beta * b[i]; }
};

struct Blend {
  const float* g;
  const float* a;
  const float* b;
  float* out;
  CADRE_DEVICE void operator()(int64_t i) const { out[i] = g[i] * a[i] + (1.0F - g[i]) * b[i]; }
};

struct BlendGrad {
  const float* g;
  const float* a;
  const float* b;
  const float* dout;
  float* dg;
  float* da;
  float* db;
  CADRE_DEVICE void operator()(int64_t i) const {
    dg[i] = dout[i] * (a[i] - b[i]);
    da[i] = dout[i] * g[i];
    db[i] = dout[i] * (1.0F - g[i]);
  }
};

struct Sigmoid {
  const float* x;
  float* y;
  CADRE_DEVICE void operator()(int64_t i) const { y[i] = logistic(x[i]); }
};

struct Clip {
  float limit;
  const float* x;
  float* y;
  // A NaN stays a NaN.
  CADRE_DEVICE void operator()(int64_t i) const { y[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i]; }
};

struct ClipGrad {
  float limit;
  const float* x;
  const float* dy;
  float* dx;
  CADRE_DEVICE void operator()(int64_t i) const { dx[i] = x[i] <= limit && x[i] >= -limit ? dy[i] : 0.0F; }
};

struct SigmoidGrad {
  const float* y;
  const float* dy;
  float* dx;
  CADRE_DEVICE void operator()(int64_t i) const { dx[i] = dy[i] * y[i] * (1.0F - y[i]); }
};

// Values that are kept as float or as bf16.
CADRE_DEVICE inline float load(float value) { return value; }
CADRE_DEVICE inline float load(bf16 value) { return to_float(value); }
CADRE_DEVICE inline void store(float& to, float value) { to = value; }
CADRE_DEVICE inline void store(bf16& to, float value) { to = to_bf16(value); }

struct ToBf16 {
  const float* values;
  bf16* rounded;
  CADRE_DEVICE bool fours(int64_t count) const { return in_fours(count, values, rounded); }
  template <class V = float>
  CADRE_DEVICE void operator()(int64_t i) const {
    const auto bits = by_float([](float value) { return to_bf16(value); }, at<V>(values, i));
    at<std::remove_const_t<decltype(bits)>>(rounded, i) = bits;
  }
};

template <class Moment>
struct AdamW {
  float learning_rate;
  float beta1;
  float beta2;
  float rest1;        // 1 - beta1
  float rest2;        // 1 - beta2
  float over_first;   // 1 / (1 - beta1^step)
  float over_second;  // 1 / (1 - beta2^step)
  float epsilon;
  float weight_decay;
  float grad_scale;
  float* value;
  const float* grad;
  Moment* m;
  Moment* v;

  CADRE_DEVICE void operator()(int64_t i) const {
    const float g = grad_scale * grad[i];
    const float first = beta1 * load(m[i]) + rest1 * g;
    const float second = beta2 * load(v[i]) + rest2 * g * g;
    const float direction = first * over_first / (sqrtf(second * over_second) + epsilon);
    store(m[i], first);
    store(v[i], second);
    value[i] -= learning_rate * (direction + weight_decay * value[i]);
  }
};

// Block b adds up the squares of the b-th piece.
inline constexpr int64_t kSquaresPiece = 1 << 16;
struct SumSquares {
  const float* x;
  double* sums;  // [blocks]
  int64_t count;
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t first = block.index() * kSquaresPiece;
    const int64_t here = count - first < kSquaresPiece ? count - first : kSquaresPiece;
    const double total = block.reduce(
        here, 0.0, [&](int64_t i) { return static_cast<double>(x[first + i]) * static_cast<double>(x[first + i]); },
        Plus());
    block.each(1, [&](int64_t) { sums[block.index()] = total; });
  }
};

}  // namespace cadre::gpu
