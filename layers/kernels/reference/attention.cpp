// SPDX-License-Identifier: Apache-2.0
// Reference attention: one query at a time, the probabilities of its keys written out.
#include <algorithm>
#include <cmath>
#include <vector>

#include "layers/kernels/reference/reference.hpp"

namespace cadre {
namespace {

// Where one query of one head finds its rows.
struct Query {
  int64_t row;        // of q, out, dq: (token, head)
  int64_t first_key;  // row of its key 0 in k, v, dk, dv: (token, key/value head)
  int64_t key_step;   // rows from a key to the next
  int64_t num_keys;   // keys it may see
  int64_t lse_index;

  int64_t key(int64_t j) const { return first_key + j * key_step; }
};

template <class Body>
void for_each_query(const AttentionShape& shape, Body&& body) {
  const int64_t heads_per_kv_head = shape.num_heads / shape.num_kv_heads;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      const int64_t kv_row = b * shape.kv_stride * shape.num_kv_heads + h / heads_per_kv_head;
      for (int64_t t = 0; t < shape.q_len; ++t) {
        body(Query{(b * shape.q_len + t) * shape.num_heads + h, kv_row, shape.num_kv_heads,
                   shape.kv_len - shape.q_len + t + 1, (b * shape.num_heads + h) * shape.q_len + t});
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

// v_width: elements of a row of v.
template <class T>
void forward(const AttentionShape& shape, const T* q, const T* k, const T* v, int64_t v_width, T* out, T* lse) {
  std::vector<double> scores(static_cast<size_t>(shape.kv_len));
  for_each_query(shape, [&](const Query& query) {
    const auto seen = scores.begin() + query.num_keys;
    for (int64_t j = 0; j < query.num_keys; ++j) {
      scores[static_cast<size_t>(j)] =
          shape.scale * dot(q + query.row * shape.head_dim, k + query.key(j) * shape.head_dim, shape.head_dim);
    }
    const double largest = *std::max_element(scores.begin(), seen);
    double denominator = 0.0;
    for (auto score = scores.begin(); score != seen; ++score) denominator += std::exp(*score - largest);
    const double log_denominator = largest + std::log(denominator);
    for (int64_t d = 0; d < shape.value_dim; ++d) {
      double sum = 0.0;
      for (int64_t j = 0; j < query.num_keys; ++j) {
        const double probability = std::exp(scores[static_cast<size_t>(j)] - log_denominator);
        sum += probability * double{v[query.key(j) * v_width + d]};
      }
      out[query.row * shape.value_dim + d] = static_cast<T>(sum);
    }
    lse[query.lse_index] = static_cast<T>(log_denominator);
  });
}

// With p the probabilities: dv = p^T dout, ds = p (dout v^T - <dout, out>), dq = scale ds k, dk = scale ds^T q.
template <class T>
void backward(const AttentionShape& shape, const T* q, const T* k, const T* v, const T* out, const T* lse,
              const T* dout, T* dq, double* dk, double* dv) {
  const int64_t dim = shape.head_dim;
  const int64_t value_dim = shape.value_dim;
  std::vector<double> query_grad(static_cast<size_t>(dim));
  for_each_query(shape, [&](const Query& query) {
    const T* q_row = q + query.row * dim;
    const T* dout_row = dout + query.row * value_dim;
    const double out_dot = dot(dout_row, out + query.row * value_dim, value_dim);
    std::fill(query_grad.begin(), query_grad.end(), 0.0);
    for (int64_t j = 0; j < query.num_keys; ++j) {
      const int64_t key = query.key(j) * dim;
      const int64_t value = query.key(j) * value_dim;
      const double probability = std::exp(shape.scale * dot(q_row, k + key, dim) - double{lse[query.lse_index]});
      const double ds = shape.scale * probability * (dot(dout_row, v + value, value_dim) - out_dot);
      for (int64_t d = 0; d < dim; ++d) {
        query_grad[static_cast<size_t>(d)] += ds * double{k[key + d]};
        dk[key + d] += ds * double{q_row[d]};
      }
      for (int64_t d = 0; d < value_dim; ++d) dv[value + d] += probability * double{dout_row[d]};
    }
    for (int64_t d = 0; d < dim; ++d) dq[query.row * dim + d] = static_cast<T>(query_grad[static_cast<size_t>(d)]);
  });
}

// Rounds the sums of the kv_len live rows of every sequence into `grad`, `dim` elements a head.
template <class T>
void store_live_rows(const AttentionShape& shape, int64_t dim, const std::vector<double>& sums, T* grad) {
  const int64_t row = shape.num_kv_heads * dim;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t first = b * shape.kv_stride * row;
    for (int64_t i = first; i < first + shape.kv_len * row; ++i) grad[i] = static_cast<T>(sums[static_cast<size_t>(i)]);
  }
}

}  // namespace

using reference::dispatch;

void ReferenceKernels::rope(const Tensor& x, const Tensor& positions, const Rope& rope, RopeDirection direction) const {
  const auto pairs = static_cast<int64_t>(rope.frequencies.size());
  const int64_t step = rope.layout == RopeLayout::interleaved ? 2 : 1;       // from a pair to the next
  const int64_t apart = rope.layout == RopeLayout::interleaved ? 1 : pairs;  // the two of a pair
  const double sign = direction == RopeDirection::forward ? 1.0 : -1.0;
  dispatch(x, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int64_t head = 0; head < x.dim(1); ++head) {
        T* row = x.data<T>() + (t * x.dim(1) + head) * x.dim(2) + rope.first;
        for (int64_t i = 0; i < pairs; ++i) {
          const double angle = sign * positions.data<int32_t>()[t] * rope.frequencies[static_cast<size_t>(i)];
          const double cosine = rope.factor * std::cos(angle);
          const double sine = rope.factor * std::sin(angle);
          const double a = row[i * step];
          const double b = row[i * step + apart];
          row[i * step] = static_cast<T>(a * cosine - b * sine);
          row[i * step + apart] = static_cast<T>(a * sine + b * cosine);
        }
      }
    }
  });
}

void ReferenceKernels::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& out, const Tensor& lse) const {
  dispatch(q, [&]<class T>(std::type_identity<T>) {
    forward(shape, q.data<T>(), k.data<T>(), v.data<T>(), v.dim(2), out.data<T>(), lse.data<T>());
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
    store_live_rows(shape, shape.head_dim, dk_sums, dk.data<T>());
    store_live_rows(shape, shape.value_dim, dv_sums, dv.data<T>());
  });
}

}  // namespace cadre
