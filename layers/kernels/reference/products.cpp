// SPDX-License-Identifier: Apache-2.0
// Reference products with a weight, and the factory of the reference back end.
#include "layers/kernels/reference/reference.hpp"

namespace cadre {

using reference::dispatch;

void ReferenceKernels::linear(const Tensor& x, const Parameter& weight, const Tensor& y) const {
  const int64_t num_rows = x.dim(0);
  const int64_t width_out = weight.value.dim(0);
  const int64_t width_in = weight.value.dim(1);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    const T* in = x.data<T>();
    const T* w = weight.value.data<T>();
    T* out = y.data<T>();
    for (int64_t t = 0; t < num_rows; ++t) {
      for (int64_t n = 0; n < width_out; ++n) {
        double sum = 0.0;
        for (int64_t k = 0; k < width_in; ++k) sum += double{in[t * width_in + k]} * double{w[n * width_in + k]};
        out[t * width_out + n] = static_cast<T>(sum);
      }
    }
  });
}

void ReferenceKernels::linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                                         Accumulate accumulate) const {
  const int64_t num_rows = dy.dim(0);
  const int64_t width_out = weight.value.dim(0);
  const int64_t width_in = weight.value.dim(1);
  dispatch(dy, [&]<class T>(std::type_identity<T>) {
    const T* grad_out = dy.data<T>();
    const T* w = weight.value.data<T>();
    T* grad_in = dx.data<T>();
    for (int64_t t = 0; t < num_rows; ++t) {
      for (int64_t k = 0; k < width_in; ++k) {
        double sum = accumulate == Accumulate::yes ? double{grad_in[t * width_in + k]} : 0.0;
        for (int64_t n = 0; n < width_out; ++n)
          sum += double{grad_out[t * width_out + n]} * double{w[n * width_in + k]};
        grad_in[t * width_in + k] = static_cast<T>(sum);
      }
    }
  });
}

void ReferenceKernels::linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw,
                                          Accumulate accumulate) const {
  const int64_t num_rows = x.dim(0);
  const int64_t width_out = dw.dim(0);
  const int64_t width_in = dw.dim(1);
  dispatch(dw, [&]<class T>(std::type_identity<T>) {
    const T* in = x.data<T>();
    const T* grad_out = dy.data<T>();
    T* grad = dw.data<T>();
    for (int64_t n = 0; n < width_out; ++n) {
      for (int64_t k = 0; k < width_in; ++k) {
        double sum = accumulate == Accumulate::yes ? double{grad[n * width_in + k]} : 0.0;
        for (int64_t t = 0; t < num_rows; ++t)
          sum += double{grad_out[t * width_out + n]} * double{in[t * width_in + k]};
        grad[n * width_in + k] = static_cast<T>(sum);
      }
    }
  });
}

std::unique_ptr<Kernels> make_reference_kernels() { return std::make_unique<ReferenceKernels>(); }

}  // namespace cadre
