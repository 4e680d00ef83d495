// SPDX-License-Identifier: Apache-2.0
// Reference embedding and cross-entropy.
#include <algorithm>
#include <cmath>

#include "layers/kernels/reference/reference.hpp"

namespace cadre {
namespace {

template <class T>
double log_sum_exp(const T* row, int64_t count) {
  const double largest = *std::max_element(row, row + count);
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(double{row[i]} - largest);
  return largest + std::log(sum);
}

}  // namespace

using reference::dispatch;

void ReferenceKernels::embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const {
  const int64_t width = table.dim(1);
  dispatch(table, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < ids.numel(); ++t) {
      const int64_t id = ids.data<int32_t>()[t];
      CADRE_ASSERT(id >= 0 && id < table.dim(0));
      std::copy_n(table.data<T>() + id * width, width, y.data<T>() + t * width);
    }
  });
}

void ReferenceKernels::embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const {
  const int64_t width = dtable.dim(1);
  dispatch(dtable, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < ids.numel(); ++t) {
      T* row = dtable.data<T>() + ids.data<int32_t>()[t] * width;
      for (int64_t h = 0; h < width; ++h) row[h] += dy.data<T>()[t * width + h];
    }
  });
}

void ReferenceKernels::cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) const {
  const int64_t vocabulary = logits.dim(1);
  dispatch(logits, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < logits.dim(0); ++t) {
      const T* row = logits.data<T>() + t * vocabulary;
      const int64_t target = targets.data<int32_t>()[t];
      CADRE_ASSERT(target >= -1 && target < vocabulary);
      const double loss = target < 0 ? 0.0 : log_sum_exp(row, vocabulary) - double{row[target]};
      losses.data<T>()[t] = static_cast<T>(loss);
    }
  });
}

void ReferenceKernels::cross_entropy_grad(const Tensor& logits, const Tensor& targets, double scale,
                                          const Tensor& dlogits) const {
  const int64_t vocabulary = logits.dim(1);
  dispatch(logits, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < logits.dim(0); ++t) {
      const T* row = logits.data<T>() + t * vocabulary;
      T* grad = dlogits.data<T>() + t * vocabulary;
      const int64_t target = targets.data<int32_t>()[t];
      if (target < 0) {
        std::fill_n(grad, vocabulary, T{0});
        continue;
      }
      const double log_denominator = log_sum_exp(row, vocabulary);
      for (int64_t i = 0; i < vocabulary; ++i) {
        const double probability = std::exp(double{row[i]} - log_denominator);
        grad[i] = static_cast<T>(scale * (probability - (i == target ? 1.0 : 0.0)));
      }
    }
  });
}

}  // namespace cadre
