// SPDX-License-Identifier: Apache-2.0
// Reference normalisation. With n = (x - mean) rstd (mean = 0 for RMSNorm) and g = dy w:
//   RMSNorm:   dx = rstd (g - n mean(g n))
//   LayerNorm: dx = rstd (g - mean(g) - n mean(g n))
#include <cmath>

#include "layers/kernels/reference/reference.hpp"

namespace cadre {

using reference::dispatch;
using reference::last_dim;
using reference::num_last_rows;

void ReferenceKernels::rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& y,
                                const Tensor& rstd) const {
  const int64_t width = last_dim(x);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    const T* w = weight.data<T>();
    for (int64_t t = 0; t < num_last_rows(x); ++t) {
      const T* in = x.data<T>() + t * width;
      T* out = y.data<T>() + t * width;
      double squares = 0.0;
      for (int64_t h = 0; h < width; ++h) squares += double{in[h]} * double{in[h]};
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(width) + epsilon);
      for (int64_t h = 0; h < width; ++h) out[h] = static_cast<T>(double{w[h]} * double{in[h]} * inverse);
      rstd.data<T>()[t] = static_cast<T>(inverse);
    }
  });
}

void ReferenceKernels::rms_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                           const Tensor& dx) const {
  const int64_t width = last_dim(x);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    const T* w = weight.data<T>();
    for (int64_t t = 0; t < num_last_rows(x); ++t) {
      const T* in = x.data<T>() + t * width;
      const T* grad_out = dy.data<T>() + t * width;
      T* grad_in = dx.data<T>() + t * width;
      const double inverse = rstd.data<T>()[t];
      double mean_gn = 0.0;
      for (int64_t h = 0; h < width; ++h) mean_gn += double{grad_out[h]} * double{w[h]} * double{in[h]} * inverse;
      mean_gn /= static_cast<double>(width);
      for (int64_t h = 0; h < width; ++h) {
        grad_in[h] = static_cast<T>(inverse * (double{grad_out[h]} * double{w[h]} - double{in[h]} * inverse * mean_gn));
      }
    }
  });
}

void ReferenceKernels::rms_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& rstd,
                                            const Tensor& dweight) const {
  const int64_t width = last_dim(x);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t h = 0; h < width; ++h) {
      double sum = dweight.data<T>()[h];
      for (int64_t t = 0; t < num_last_rows(x); ++t) {
        sum += double{dy.data<T>()[t * width + h]} * double{x.data<T>()[t * width + h]} * double{rstd.data<T>()[t]};
      }
      dweight.data<T>()[h] = static_cast<T>(sum);
    }
  });
}

void ReferenceKernels::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon,
                                  const Tensor& y, const Tensor& mean, const Tensor& rstd) const {
  const int64_t width = last_dim(x);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    const T* w = weight.data<T>();
    const T* b = bias.data<T>();
    for (int64_t t = 0; t < num_last_rows(x); ++t) {
      const T* in = x.data<T>() + t * width;
      T* out = y.data<T>() + t * width;
      double centre = 0.0;
      for (int64_t h = 0; h < width; ++h) centre += double{in[h]};
      centre /= static_cast<double>(width);
      double squares = 0.0;
      for (int64_t h = 0; h < width; ++h) squares += (double{in[h]} - centre) * (double{in[h]} - centre);
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(width) + epsilon);
      for (int64_t h = 0; h < width; ++h) {
        out[h] = static_cast<T>(double{w[h]} * (double{in[h]} - centre) * inverse + double{b[h]});
      }
      mean.data<T>()[t] = static_cast<T>(centre);
      rstd.data<T>()[t] = static_cast<T>(inverse);
    }
  });
}

void ReferenceKernels::layer_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                             const Tensor& mean, const Tensor& rstd, const Tensor& dx) const {
  const int64_t width = last_dim(x);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    const T* w = weight.data<T>();
    for (int64_t t = 0; t < num_last_rows(x); ++t) {
      const T* in = x.data<T>() + t * width;
      const T* grad_out = dy.data<T>() + t * width;
      T* grad_in = dx.data<T>() + t * width;
      const double centre = mean.data<T>()[t];
      const double inverse = rstd.data<T>()[t];
      double mean_g = 0.0;
      double mean_gn = 0.0;
      for (int64_t h = 0; h < width; ++h) {
        const double g = double{grad_out[h]} * double{w[h]};
        mean_g += g;
        mean_gn += g * (double{in[h]} - centre) * inverse;
      }
      mean_g /= static_cast<double>(width);
      mean_gn /= static_cast<double>(width);
      for (int64_t h = 0; h < width; ++h) {
        const double g = double{grad_out[h]} * double{w[h]};
        grad_in[h] = static_cast<T>(inverse * (g - mean_g - (double{in[h]} - centre) * inverse * mean_gn));
      }
    }
  });
}

void ReferenceKernels::layer_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                              const Tensor& dweight, const Tensor& dbias) const {
  const int64_t width = last_dim(x);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t h = 0; h < width; ++h) {
      double weight_sum = dweight.data<T>()[h];
      double bias_sum = dbias.data<T>()[h];
      for (int64_t t = 0; t < num_last_rows(x); ++t) {
        const double grad_out = dy.data<T>()[t * width + h];
        const double centred = double{x.data<T>()[t * width + h]} - double{mean.data<T>()[t]};
        weight_sum += grad_out * centred * double{rstd.data<T>()[t]};
        bias_sum += grad_out;
      }
      dweight.data<T>()[h] = static_cast<T>(weight_sum);
      dbias.data<T>()[h] = static_cast<T>(bias_sum);
    }
  });
}

}  // namespace cadre
