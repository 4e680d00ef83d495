// SPDX-License-Identifier: Apache-2.0
// Reference router functions, and rows on their way to experts and back.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "layers/kernels/reference/reference.hpp"

namespace cadre {

using reference::dispatch;
using reference::last_dim;
using reference::num_last_rows;

void ReferenceKernels::softmax(const Tensor& x, const Tensor& y) const {
  const int64_t width = last_dim(x);
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < num_last_rows(x); ++t) {
      const T* in = x.data<T>() + t * width;
      T* out = y.data<T>() + t * width;
      const double largest = *std::max_element(in, in + width);
      double sum = 0.0;
      for (int64_t i = 0; i < width; ++i) sum += std::exp(double{in[i]} - largest);
      for (int64_t i = 0; i < width; ++i) out[i] = static_cast<T>(std::exp(double{in[i]} - largest) / sum);
    }
  });
}

void ReferenceKernels::softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const {
  const int64_t width = last_dim(y);
  dispatch(y, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < num_last_rows(y); ++t) {
      const T* p = y.data<T>() + t * width;
      const T* grad_out = dy.data<T>() + t * width;
      T* grad_in = dx.data<T>() + t * width;
      double mean = 0.0;
      for (int64_t i = 0; i < width; ++i) mean += double{p[i]} * double{grad_out[i]};
      for (int64_t i = 0; i < width; ++i) grad_in[i] = static_cast<T>(double{p[i]} * (double{grad_out[i]} - mean));
    }
  });
}

void ReferenceKernels::sigmoid(const Tensor& x, const Tensor& y) const {
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      y.data<T>()[i] = static_cast<T>(1.0 / (1.0 + std::exp(-double{x.data<T>()[i]})));
    }
  });
}

void ReferenceKernels::sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const {
  dispatch(y, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < y.numel(); ++i) {
      const double s = y.data<T>()[i];
      dx.data<T>()[i] = static_cast<T>(double{dy.data<T>()[i]} * s * (1.0 - s));
    }
  });
}

void ReferenceKernels::top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const {
  const int64_t num_experts = scores.dim(1);
  const int64_t num_chosen = ids.dim(1);
  dispatch(scores, [&]<class T>(std::type_identity<T>) {
    std::vector<T> ranked(static_cast<size_t>(num_experts));
    std::vector<int32_t> order(static_cast<size_t>(num_experts));
    for (int64_t t = 0; t < scores.dim(0); ++t) {
      for (int64_t e = 0; e < num_experts; ++e) {
        const T offset = bias.defined() ? bias.data<T>()[e] : T{0};
        const T score = scores.data<T>()[t * num_experts + e] + offset;
        if (std::isnan(score)) {
          throw Error(ErrorKind::numerics, fmt::format("router score of token row {}, expert {} is NaN", t, e),
                      "the activations or the router weights are no longer finite; lower the learning rate");
        }
        ranked[static_cast<size_t>(e)] = score;
      }
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return ranked[static_cast<size_t>(a)] > ranked[static_cast<size_t>(b)];
      });
      std::copy_n(order.begin(), num_chosen, ids.data<int32_t>() + t * num_chosen);
    }
  });
}

void ReferenceKernels::gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const {
  const int64_t width = dst.row_numel();
  dispatch(dst, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < index.numel(); ++r) {
      const T* from = src.row<T>(index.data<int32_t>()[r]);
      const T factor = scale.defined() ? scale.data<T>()[r] : T{1};
      for (int64_t h = 0; h < width; ++h) dst.data<T>()[r * width + h] = factor * from[h];
    }
  });
}

void ReferenceKernels::sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                                const Tensor& dst) const {
  const int64_t width = dst.row_numel();
  const int32_t* first = offsets.data<int32_t>();
  dispatch(dst, [&]<class T>(std::type_identity<T>) {
    for (int64_t r = 0; r < dst.dim(0); ++r) {
      for (int64_t h = 0; h < width; ++h) {
        double sum = 0.0;
        for (int64_t j = first[r]; j < first[r + 1]; ++j) {
          const double factor = weight.defined() ? double{weight.data<T>()[j]} : 1.0;
          sum += factor * double{src.row<T>(index.data<int32_t>()[j])[h]};
        }
        dst.data<T>()[r * width + h] = static_cast<T>(sum);
      }
    }
  });
}

void ReferenceKernels::dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                                const Tensor& out) const {
  const int64_t width = a.width;
  dispatch(out, [&]<class T>(std::type_identity<T>) {
    for (int64_t j = 0; j < out.numel(); ++j) {
      const T* left = a.row<T>(a_index.data<int32_t>()[j]);
      const T* right = b.row<T>(b_index.data<int32_t>()[j]);
      double sum = 0.0;
      for (int64_t h = 0; h < width; ++h) sum += double{left[h]} * double{right[h]};
      out.data<T>()[j] = static_cast<T>(sum);
    }
  });
}

// Reference embedding and cross-entropy.

namespace {

template <class T>
double log_denominator_of(const T* row, int64_t count) {
  const double largest = *std::max_element(row, row + count);
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(double{row[i]} - largest);
  return largest + std::log(sum);
}

}  // namespace

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
      const double loss = target < 0 ? 0.0 : log_denominator_of(row, vocabulary) - double{row[target]};
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
      const double log_denominator = log_denominator_of(row, vocabulary);
      for (int64_t i = 0; i < vocabulary; ++i) {
        const double probability = std::exp(double{row[i]} - log_denominator);
        grad[i] = static_cast<T>(scale * (probability - (i == target ? 1.0 : 0.0)));
      }
    }
  });
}

}  // namespace cadre
