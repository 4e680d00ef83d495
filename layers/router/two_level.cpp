// SPDX-License-Identifier: Apache-2.0
#include "layers/router/two_level.hpp"

#include <algorithm>
#include <cmath>

#include "layers/tensor/tensor.hpp"

namespace cadre {

void join_levels(const Tensor& coarse, const Tensor& logits, const Tensor& within) {
  const int64_t size = logits.dim(1) / coarse.dim(1);
  with_element_type(logits, [&]<class T>(std::type_identity<T>) {
    for (int64_t g = 0; g < coarse.numel(); ++g) {
      T* const logit = logits.data<T>() + g * size;
      T* const share = within.data<T>() + g * size;
      const double largest = *std::max_element(logit, logit + size);
      double sum = 0.0;
      for (int64_t i = 0; i < size; ++i) sum += std::exp(double{logit[i]} - largest);
      const double log_sum = largest + std::log(sum);
      for (int64_t i = 0; i < size; ++i) {
        share[i] = static_cast<T>(std::exp(double{logit[i]} - log_sum));
        logit[i] = static_cast<T>(double{coarse.data<T>()[g]} + double{logit[i]} - log_sum);
      }
    }
  });
}

void join_levels_grad(const Tensor& within, const Tensor& dlogits, const Tensor& d_coarse) {
  const int64_t size = dlogits.dim(1) / d_coarse.dim(1);
  with_element_type(dlogits, [&]<class T>(std::type_identity<T>) {
    for (int64_t g = 0; g < d_coarse.numel(); ++g) {
      T* const d = dlogits.data<T>() + g * size;
      const T* const share = within.data<T>() + g * size;
      double sum = 0.0;
      for (int64_t i = 0; i < size; ++i) sum += d[i];
      for (int64_t i = 0; i < size; ++i) d[i] = static_cast<T>(double{d[i]} - double{share[i]} * sum);
      d_coarse.data<T>()[g] = static_cast<T>(sum);
    }
  });
}

}  // namespace cadre
