// SPDX-License-Identifier: Apache-2.0
// Reference attention: one query at a time, the probabilities of its keys written out.
#include <algorithm>
#include <cmath>
#include <vector>

#include "layers/kernels/reference.hpp"

namespace cadre {
namespace {

// Where one query of one head finds its rows.
struct Query {
  int64_t q_offset;       // first element of the query in q, out, dq
  int64_t kv_offset;      // first element of its key 0 in k, v, dk, dv
  int64_t kv_row_stride;  // elements from a key to the next
  int64_t num_keys;       // keys it may see
  int64_t lse_index;
};

template <class Body>
void for_each_query(const AttentionShape& shape, Body&& body) {
  const int64_t heads_per_kv_head = shape.num_heads / shape.num_kv_heads;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      const int64_t kv_row = b * shape.kv_stride * shape.num_kv_heads + h / heads_per_kv_head;
      for (int64_t t = 0; t < shape.q_len; ++t) {
        body(Query{((b * shape.q_len + t) * shape.num_heads + h) * shape.head_dim, kv_row * shape.head_dim,
                   shape.num_kv_heads * shape.head_dim, shape.kv_len - shape.q_len + t + 1,
                   (b * shape.num_heads + h) * shape.q_len + t});
      }
    }
  }
}

template <class T>
double dot(const T* a, const T* b, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

template <class T>
void forward(const AttentionShape& shape, const T* q, const T* k, const T* v, T* out, T* lse) {
  std::vector<double> scores(static_cast<size_t>(shape.kv_len));
  for_each_query(shape, [&](const Query& query) {
    const auto seen = scores.begin() + query.num_keys;
    for (int64_t j = 0; j < query.num_keys; ++j) {
      const T* key = k + query.kv_offset + j * query.kv_row_stride;
      scores[static_cast<size_t>(j)] = shape.scale * dot(q + query.q_offset, key, shape.head_dim);
    }
    const double largest = *std::max_element(scores.begin(), seen);
    double denominator = 0.0;
    for (auto score = scores.begin(); score != seen; ++score) denominator += std::exp(*score - largest);
    const double log_denominator = largest + std::log(denominator);
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      double sum = 0.0;
      for (int64_t j = 0; j < query.num_keys; ++j) {
        const double probability = std::exp(scores[static_cast<size_t>(j)] - log_denominator);
        sum += probability * double{v[query.kv_offset + j * query.kv_row_stride + d]};
      }
      out[query.q_offset + d] = static_cast<T>(sum);
    }
    lse[query.lse_index] = static_cast<T>(log_denominator);
  });
}

// With p the probabilities: dv = p^T dout, ds = p (dout v^T - <dout, out>), dq = scale ds k, dk = scale ds^T q.
template <class T>
void backward(const AttentionShape& shape, const T* q, const T* k, const T* v, const T* out, const T* lse,
              const T* dout, T* dq, double* dk, double* dv) {
  std::vector<double> query_grad(static_cast<size_t>(shape.head_dim));
  for_each_query(shape, [&](const Query& query) {
    const T* q_row = q + query.q_offset;
    const T* dout_row = dout + query.q_offset;
    const double out_dot = dot(dout_row, out + query.q_offset, shape.head_dim);
    std::fill(query_grad.begin(), query_grad.end(), 0.0);
    for (int64_t j = 0; j < query.num_keys; ++j) {
      const int64_t kv = query.kv_offset + j * query.kv_row_stride;
      const double probability =
          std::exp(shape.scale * dot(q_row, k + kv, shape.head_dim) - double{lse[query.lse_index]});
      const double ds = shape.scale * probability * (dot(dout_row, v + kv, shape.head_dim) - out_dot);
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        query_grad[static_cast<size_t>(d)] += ds * double{k[kv + d]};
        dk[kv + d] += ds * double{q_row[d]};
        dv[kv + d] += probability * double{dout_row[d]};
      }
    }
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      dq[query.q_offset + d] = static_cast<T>(query_grad[static_cast<size_t>(d)]);
    }
  });
}

// Rounds the sums of the kv_len live rows of every sequence into `grad`.
template <class T>
void store_live_rows(const AttentionShape& shape, const std::vector<double>& sums, T* grad) {
  const int64_t row = shape.num_kv_heads * shape.head_dim;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t first = b * shape.kv_stride * row;
    for (int64_t i = first; i < first + shape.kv_len * row; ++i) grad[i] = static_cast<T>(sums[static_cast<size_t>(i)]);
  }
}

}  // namespace

using reference::dispatch;

void ReferenceKernels::rope(const Tensor& x, const Tensor& positions, double theta, RopeDirection direction) const {
  const int64_t half = x.dim(2) / 2;
  const double sign = direction == RopeDirection::forward ? 1.0 : -1.0;
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int64_t head = 0; head < x.dim(1); ++head) {
        T* row = x.data<T>() + (t * x.dim(1) + head) * x.dim(2);
        for (int64_t i = 0; i < half; ++i) {
          const double frequency = std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
          const double angle = sign * positions.data<int32_t>()[t] * frequency;
          const double low = row[i];
          const double high = row[i + half];
          row[i] = static_cast<T>(low * std::cos(angle) - high * std::sin(angle));
          row[i + half] = static_cast<T>(low * std::sin(angle) + high * std::cos(angle));
        }
      }
    }
  });
}

void ReferenceKernels::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& out, const Tensor& lse) const {
  dispatch(q, [&]<class T>(std::type_identity<T>) {
    forward(shape, q.data<T>(), k.data<T>(), v.data<T>(), out.data<T>(), lse.data<T>());
  });
}

void ReferenceKernels::attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq,
                                      const Tensor& dk, const Tensor& dv) const {
  std::vector<double> dk_sums(static_cast<size_t>(k.numel()), 0.0);
  std::vector<double> dv_sums(static_cast<size_t>(v.numel()), 0.0);
  dispatch(q, [&]<class T>(std::type_identity<T>) {
    backward(shape, q.data<T>(), k.data<T>(), v.data<T>(), out.data<T>(), lse.data<T>(), dout.data<T>(), dq.data<T>(),
             dk_sums.data(), dv_sums.data());
    store_live_rows(shape, dk_sums, dk.data<T>());
    store_live_rows(shape, dv_sums, dv.data<T>());
  });
}

}  // namespace cadre
