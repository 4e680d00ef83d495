// SPDX-License-Identifier: Apache-2.0
// RMSNorm and LayerNorm, a row at a time; a row stays in the first cache between its passes.
#include <cmath>

#include "layers/kernels/cpu/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

void rms_norm_rows(const float* x, const float* weight, double epsilon, float* y, float* rstd, size_t num_rows,
                   size_t width) {
  for (size_t t = 0; t < num_rows; ++t, x += width, y += width) {
    const double squares = sum_vectors(width, [x](size_t i, auto lanes) HWY_ATTR {
      const Float v = lanes.load(x + i);
      return hn::Mul(v, v);
    });
    rstd[t] = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(width) + epsilon));
    const Float inverse = splat(rstd[t]);
    for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
      lanes.store(hn::Mul(hn::Mul(lanes.load(x + i), inverse), lanes.load(weight + i)), y + i);
    });
  }
}

// With n = x rstd and g = dy w: dx = rstd (g - n mean(g n))
void rms_norm_input_grad_rows(const float* dy, const float* x, const float* weight, const float* rstd, float* dx,
                              size_t num_rows, size_t width) {
  for (size_t t = 0; t < num_rows; ++t, dy += width, x += width, dx += width) {
    const double sum_gx = sum_vectors(width, [=](size_t i, auto lanes) HWY_ATTR {
      return hn::Mul(hn::Mul(lanes.load(dy + i), lanes.load(weight + i)), lanes.load(x + i));
    });
    const double inverse = rstd[t];
    const Float scale = splat(rstd[t]);
    const Float along_x = splat(static_cast<float>(inverse * inverse * inverse * sum_gx / static_cast<double>(width)));
    for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
      const Float g = hn::Mul(lanes.load(dy + i), lanes.load(weight + i));
      lanes.store(hn::NegMulAdd(along_x, lanes.load(x + i), hn::Mul(scale, g)), dx + i);
    });
  }
}

// Of `width` columns of rows of `stride`.
void rms_norm_weight_grad_rows(const float* dy, const float* x, const float* rstd, float* dweight, size_t num_rows,
                               size_t width, size_t stride) {
  for (size_t t = 0; t < num_rows; ++t, dy += stride, x += stride) {
    const Float inverse = splat(rstd[t]);
    for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
      const Float n = hn::Mul(lanes.load(x + i), inverse);
      lanes.store(hn::MulAdd(lanes.load(dy + i), n, lanes.load(dweight + i)), dweight + i);
    });
  }
}

void layer_norm_rows(const float* x, const float* weight, const float* bias, double epsilon, float* y, float* mean,
                     float* rstd, size_t num_rows, size_t width) {
  const auto count = static_cast<double>(width);
  for (size_t t = 0; t < num_rows; ++t, x += width, y += width) {
    const double sum = sum_vectors(width, [x](size_t i, auto lanes) HWY_ATTR { return lanes.load(x + i); });
    mean[t] = static_cast<float>(sum / count);
    const Float centre = splat(mean[t]);
    const double squares = sum_vectors(width, [=](size_t i, auto lanes) HWY_ATTR {
      const Float v = hn::Sub(lanes.load(x + i), centre);
      return hn::Mul(v, v);
    });
    rstd[t] = static_cast<float>(1.0 / std::sqrt(squares / count + epsilon));
    const Float inverse = splat(rstd[t]);
    for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
      const Float n = hn::Mul(hn::Sub(lanes.load(x + i), centre), inverse);
      lanes.store(hn::MulAdd(n, lanes.load(weight + i), lanes.load(bias + i)), y + i);
    });
  }
}

// With n = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - n mean(g n))
void layer_norm_input_grad_rows(const float* dy, const float* x, const float* weight, const float* mean,
                                const float* rstd, float* dx, size_t num_rows, size_t width) {
  const auto count = static_cast<double>(width);
  for (size_t t = 0; t < num_rows; ++t, dy += width, x += width, dx += width) {
    const Float centre = splat(mean[t]);
    const Float inverse = splat(rstd[t]);
    const double sum_g = sum_vectors(
        width, [=](size_t i, auto lanes) HWY_ATTR { return hn::Mul(lanes.load(dy + i), lanes.load(weight + i)); });
    const double sum_gn = sum_vectors(width, [=](size_t i, auto lanes) HWY_ATTR {
      const Float n = hn::Mul(hn::Sub(lanes.load(x + i), centre), inverse);
      return hn::Mul(hn::Mul(lanes.load(dy + i), lanes.load(weight + i)), n);
    });
    const Float mean_g = splat(static_cast<float>(sum_g / count));
    const Float mean_gn = splat(static_cast<float>(sum_gn / count));
    for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
      const Float n = hn::Mul(hn::Sub(lanes.load(x + i), centre), inverse);
      const Float g = hn::Mul(lanes.load(dy + i), lanes.load(weight + i));
      lanes.store(hn::Mul(inverse, hn::NegMulAdd(n, mean_gn, hn::Sub(g, mean_g))), dx + i);
    });
  }
}

void layer_norm_weight_grad_rows(const float* dy, const float* x, const float* mean, const float* rstd, float* dweight,
                                 float* dbias, size_t num_rows, size_t width, size_t stride) {
  for (size_t t = 0; t < num_rows; ++t, dy += stride, x += stride) {
    const Float centre = splat(mean[t]);
    const Float inverse = splat(rstd[t]);
    for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
      const Float grad = lanes.load(dy + i);
      const Float n = hn::Mul(hn::Sub(lanes.load(x + i), centre), inverse);
      lanes.store(hn::MulAdd(grad, n, lanes.load(dweight + i)), dweight + i);
      lanes.store(hn::Add(grad, lanes.load(dbias + i)), dbias + i);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(rms_norm_rows);
HWY_EXPORT(rms_norm_input_grad_rows);
HWY_EXPORT(rms_norm_weight_grad_rows);
HWY_EXPORT(layer_norm_rows);
HWY_EXPORT(layer_norm_input_grad_rows);
HWY_EXPORT(layer_norm_weight_grad_rows);

using cpu::num_rows_of;
using cpu::width_of;

namespace {

constexpr size_t kColumns = 64;  // of a part of a sum over rows, whose order no cut changes

// Calls body(first, count) for pieces of the columns of x.
template <class Body>
void for_columns(ThreadPool& threads, const Tensor& x, const Body& body) {
  const size_t width = num_rows_of(x) == 0 ? 0 : width_of(x);
  threads.run(static_cast<int64_t>((width + kColumns - 1) / kColumns), [&](int64_t i) {
    const size_t first = static_cast<size_t>(i) * kColumns;
    body(first, std::min(kColumns, width - first));
  });
}

}  // namespace

void CpuKernels::rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& y,
                          const Tensor& rstd) const {
  const size_t width = width_of(x);
  cpu::for_pieces(threads_, num_rows_of(x), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(rms_norm_rows)
    (x.data<float>() + first * width, weight.data<float>(), epsilon, y.data<float>() + first * width,
     rstd.data<float>() + first, count, width);
  });
}

void CpuKernels::rms_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                     const Tensor& dx) const {
  const size_t width = width_of(x);
  cpu::for_pieces(threads_, num_rows_of(x), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(rms_norm_input_grad_rows)
    (dy.data<float>() + first * width, x.data<float>() + first * width, weight.data<float>(),
     rstd.data<float>() + first, dx.data<float>() + first * width, count, width);
  });
}

void CpuKernels::rms_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& rstd,
                                      const Tensor& dweight) const {
  for_columns(threads_, x, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(rms_norm_weight_grad_rows)
    (dy.data<float>() + first, x.data<float>() + first, rstd.data<float>(), dweight.data<float>() + first,
     num_rows_of(x), count, width_of(x));
  });
}

void CpuKernels::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon, const Tensor& y,
                            const Tensor& mean, const Tensor& rstd) const {
  const size_t width = width_of(x);
  cpu::for_pieces(threads_, num_rows_of(x), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(layer_norm_rows)
    (x.data<float>() + first * width, weight.data<float>(), bias.data<float>(), epsilon,
     y.data<float>() + first * width, mean.data<float>() + first, rstd.data<float>() + first, count, width);
  });
}

void CpuKernels::layer_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                                       const Tensor& rstd, const Tensor& dx) const {
  const size_t width = width_of(x);
  cpu::for_pieces(threads_, num_rows_of(x), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(layer_norm_input_grad_rows)
    (dy.data<float>() + first * width, x.data<float>() + first * width, weight.data<float>(),
     mean.data<float>() + first, rstd.data<float>() + first, dx.data<float>() + first * width, count, width);
  });
}

void CpuKernels::layer_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                        const Tensor& dweight, const Tensor& dbias) const {
  for_columns(threads_, x, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(layer_norm_weight_grad_rows)
    (dy.data<float>() + first, x.data<float>() + first, mean.data<float>(), rstd.data<float>(),
     dweight.data<float>() + first, dbias.data<float>() + first, num_rows_of(x), count, width_of(x));
  });
}

}  // namespace cadre
#endif  // HWY_ONCE
