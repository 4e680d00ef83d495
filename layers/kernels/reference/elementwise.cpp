// SPDX-License-Identifier: Apache-2.0
// Reference element-wise functions and the optimiser step.

#include <cmath>
#include <numbers>

#include "layers/kernels/reference/reference.hpp"

namespace cadre {
namespace {

double logistic(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double normal_cdf(double x) { return 0.5 * (1.0 + std::erf(x / std::numbers::sqrt2)); }
double normal_density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi); }

double silu(double x) { return x * logistic(x); }
double silu_slope(double x) { return logistic(x) * (1.0 + x * (1.0 - logistic(x))); }

double apply(Activation kind, double x) {
  switch (kind) {
    case Activation::relu: return x < 0.0 ? 0.0 : x;
    case Activation::gelu: return x * normal_cdf(x);
    case Activation::silu: return silu(x);
  }
  throw Error(ErrorKind::internal, "unknown activation");
}

double slope(Activation kind, double x) {
  switch (kind) {
    case Activation::relu: return x > 0.0 ? 1.0 : 0.0;
    case Activation::gelu: return normal_cdf(x) + x * normal_density(x);
    case Activation::silu: return silu_slope(x);
  }
  throw Error(ErrorKind::internal, "unknown activation");
}

}  // namespace

using reference::dispatch;

void ReferenceKernels::activation(Activation kind, const Tensor& x, const Tensor& y) const {
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < x.numel(); ++i) y.data<T>()[i] = static_cast<T>(apply(kind, x.data<T>()[i]));
  });
}

void ReferenceKernels::activation_grad(Activation kind, const Tensor& x, const Tensor& dy, const Tensor& dx) const {
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      dx.data<T>()[i] = static_cast<T>(double{dy.data<T>()[i]} * slope(kind, x.data<T>()[i]));
    }
  });
}

void ReferenceKernels::swiglu(const Tensor& gate_up, const Tensor& y) const {
  const int64_t width = y.dim(1);
  dispatch(y, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < y.dim(0); ++t) {
      const T* gate = gate_up.data<T>() + t * 2 * width;
      const T* up = gate + width;
      for (int64_t f = 0; f < width; ++f) y.data<T>()[t * width + f] = static_cast<T>(silu(gate[f]) * double{up[f]});
    }
  });
}

void ReferenceKernels::swiglu_grad(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) const {
  const int64_t width = dy.dim(1);
  dispatch(dy, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < dy.dim(0); ++t) {
      const T* gate = gate_up.data<T>() + t * 2 * width;
      const T* up = gate + width;
      const T* grad_out = dy.data<T>() + t * width;
      T* d_gate = d_gate_up.data<T>() + t * 2 * width;
      T* d_up = d_gate + width;
      for (int64_t f = 0; f < width; ++f) {
        const double g = gate[f];
        const double u = up[f];
        d_gate[f] = static_cast<T>(double{grad_out[f]} * u * silu_slope(g));
        d_up[f] = static_cast<T>(double{grad_out[f]} * silu(g));
      }
    }
  });
}

void ReferenceKernels::blend(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& out) const {
  dispatch(out, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < out.numel(); ++i) {
      const double share = g.data<T>()[i];
      out.data<T>()[i] = static_cast<T>(share * double{a.data<T>()[i]} + (1.0 - share) * double{b.data<T>()[i]});
    }
  });
}

void ReferenceKernels::blend_grad(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& dout,
                                  const Tensor& dg, const Tensor& da, const Tensor& db) const {
  dispatch(dout, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < dout.numel(); ++i) {
      const double share = g.data<T>()[i];
      const double grad = dout.data<T>()[i];
      dg.data<T>()[i] = static_cast<T>(grad * (double{a.data<T>()[i]} - double{b.data<T>()[i]}));
      da.data<T>()[i] = static_cast<T>(grad * share);
      db.data<T>()[i] = static_cast<T>(grad * (1.0 - share));
    }
  });
}

void ReferenceKernels::add(const Tensor& a, const Tensor& b, const Tensor& out) const {
  dispatch(out, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < out.numel(); ++i) out.data<T>()[i] = a.data<T>()[i] + b.data<T>()[i];
  });
}

void ReferenceKernels::scaled_sum(double alpha, const Tensor& a, double beta, const Tensor& b,
                                  const Tensor& out) const {
  dispatch(out, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < out.numel(); ++i) {
      out.data<T>()[i] = static_cast<T>(alpha * double{a.data<T>()[i]} + beta * double{b.data<T>()[i]});
    }
  });
}

void ReferenceKernels::clip(double limit, const Tensor& x, const Tensor& y) const {
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      const double value = x.data<T>()[i];
      y.data<T>()[i] = static_cast<T>(value > limit ? limit : value < -limit ? -limit : value);
    }
  });
}

void ReferenceKernels::clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const {
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      dx.data<T>()[i] = std::abs(double{x.data<T>()[i]}) <= limit ? dy.data<T>()[i] : T{0};
    }
  });
}

double ReferenceKernels::sum_squares(const Tensor& x) const {
  double sum = 0.0;
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < x.numel(); ++i) sum += double{x.data<T>()[i]} * double{x.data<T>()[i]};
  });
  return sum;
}

namespace {

template <class T>
double moment(const Tensor& moments, int64_t i) {
  return moments.dtype() == DType::bf16 ? double{to_float(moments.data<bf16>()[i])} : double{moments.data<T>()[i]};
}

template <class T>
void set_moment(const Tensor& moments, int64_t i, double value) {
  if (moments.dtype() == DType::bf16) {
    moments.data<bf16>()[i] = to_bf16(static_cast<float>(value));
  } else {
    moments.data<T>()[i] = static_cast<T>(value);
  }
}

}  // namespace

void ReferenceKernels::adamw(const AdamWStep& step, const Tensor& value, const Tensor& grad, const Tensor& m,
                             const Tensor& v) const {
  const double correction1 = 1.0 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1.0 - std::pow(step.beta2, static_cast<double>(step.step));
  dispatch(value, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < value.numel(); ++i) {
      const double g = step.grad_scale * double{grad.data<T>()[i]};
      const double first = step.beta1 * moment<T>(m, i) + (1.0 - step.beta1) * g;
      const double second = step.beta2 * moment<T>(v, i) + (1.0 - step.beta2) * g * g;
      const double old_value = value.data<T>()[i];
      const double direction = (first / correction1) / (std::sqrt(second / correction2) + step.epsilon);
      set_moment<T>(m, i, first);
      set_moment<T>(v, i, second);
      value.data<T>()[i] = static_cast<T>(old_value - step.learning_rate * (direction + step.weight_decay * old_value));
    }
  });
}

// Reference of what latent attention does with parts of rows.

namespace {

template <class T>
T* start_of_columns(const Columns& columns, int64_t row) {
  return columns.rows.data<T>() + row * reference::last_dim(columns.rows) + columns.first;
}

}  // namespace

using reference::last_dim;
using reference::num_last_rows;

void ReferenceKernels::copy_columns(const Columns& src, const Columns& dst) const {
  const int64_t num_rows = num_last_rows(dst.rows);
  if (num_rows == 0) return;
  const int64_t repeats = num_rows / num_last_rows(src.rows);
  dispatch(dst.rows, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t i = 0; i < dst.count; ++i) start_of_columns<T>(dst, r)[i] = start_of_columns<T>(src, r / repeats)[i];
    }
  });
}

void ReferenceKernels::sum_columns(const Columns& src, const Columns& dst) const {
  const int64_t num_rows = num_last_rows(dst.rows);
  if (num_rows == 0) return;
  const int64_t terms = num_last_rows(src.rows) / num_rows;
  dispatch(dst.rows, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t i = 0; i < dst.count; ++i) {
        double sum = 0.0;
        for (int64_t j = 0; j < terms; ++j) sum += double{start_of_columns<T>(src, r * terms + j)[i]};
        start_of_columns<T>(dst, r)[i] = static_cast<T>(sum);
      }
    }
  });
}

void ReferenceKernels::head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = last_dim(weight.weight);
  const int64_t rows_of_head = weight.weight.dim(0) / weight.num_heads;
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_last_rows(x); ++r) {
      const int64_t first_row = r % weight.num_heads * rows_of_head + weight.first;
      for (int64_t i = 0; i < weight.count; ++i) {
        double sum = 0.0;
        for (int64_t k = 0; k < width; ++k) {
          sum +=
              double{x.data<T>()[r * last_dim(x) + k]} * double{weight.weight.data<T>()[(first_row + i) * width + k]};
        }
        y.data<T>()[r * last_dim(y) + i] = static_cast<T>(sum);
      }
    }
  });
}

void ReferenceKernels::head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const {
  const int64_t width = last_dim(weight.weight);
  const int64_t rows_of_head = weight.weight.dim(0) / weight.num_heads;
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < num_last_rows(x); ++r) {
      const int64_t first_row = r % weight.num_heads * rows_of_head + weight.first;
      for (int64_t k = 0; k < width; ++k) {
        double sum = 0.0;
        for (int64_t i = 0; i < weight.count; ++i) {
          sum +=
              double{x.data<T>()[r * last_dim(x) + i]} * double{weight.weight.data<T>()[(first_row + i) * width + k]};
        }
        y.data<T>()[r * last_dim(y) + k] = static_cast<T>(sum);
      }
    }
  });
}

}  // namespace cadre
