// SPDX-License-Identifier: Apache-2.0
// Causal attention: scores of a tile of queries against all keys that it sees, by one product for many heads; the softmax of
// their rows by a body; then the products with the values. Backward computes scores anew and likewise. Sums run in a fixed
// order and nothing is added by two blocks, so equal calls give equal bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "layers/kernels/gpu/block.hpp"
#include "layers/kernels/gpu/call.hpp"
#include "layers/kernels/gpu/elements.hpp"
#include "layers/kernels/gpu/multiply.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

inline constexpr int64_t kAttentionRows = 256;  // of a tile, at least one query
inline constexpr int64_t kScoreFloats =
    (int64_t{32} << 20) / 4;                  // of a product, so that the cache of a device holds them
inline constexpr int64_t kScoreMultiple = 8;  // of which the length of a row of scores is one
inline constexpr int64_t kNarrowRows = 16;    // as many rows of queries make rounding keys worth its time

// Rows of queries and the heads that they belong to. Where a key/value head has several, their queries are rows of one matrix
// if they lie at one distance, and come one after the other if not. A product takes all key/value heads of a sequence, or,
// where there is one such head, all sequences.
struct AttentionPlan {
  AttentionShape shape;
  int64_t group;     // heads of a key/value head
  int64_t together;  // of them, those of one matrix
  bool by_sequence;  // matrices of a product are sequences
  int64_t matrices;  // of a product

  explicit AttentionPlan(const AttentionShape& of)
      : shape(of),
        group(of.num_heads / of.num_kv_heads),
        together(of.num_kv_heads == 1 || of.q_len == 1 ? group : 1),
        by_sequence(of.num_kv_heads == 1),
        matrices(by_sequence ? of.batch : of.num_kv_heads) {}

  int64_t tile() const { return std::clamp<int64_t>(kAttentionRows / together, 1, std::max<int64_t>(shape.q_len, 1)); }

  // Of queries, outputs and their gradients, `width` elements a head.
  MatrixStrides query_strides(int64_t width) const {
    return {together > 1 ? width : shape.num_heads * width,
            (by_sequence ? shape.q_len * shape.num_heads : group) * width};
  }
  // Of keys and values.
  MatrixStrides key_strides(int64_t width) const {
    return {shape.num_kv_heads * width, (by_sequence ? shape.kv_stride * shape.num_kv_heads : 1) * width};
  }
};

// What one product computes: `count` matrices from the `first`, of `rows` rows, which are `together` heads of each query from
// `query` on, against the first `keys` keys.
struct AttentionTile {
  int64_t sequence, first, count, pass, query, rows, keys;
  int64_t q_len, kv_len, num_heads, num_kv_heads, group, together;
  bool by_sequence;

  CADRE_DEVICE int64_t row_floats() const { return tiles_of(keys, kScoreMultiple) * kScoreMultiple; }
  CADRE_DEVICE int64_t query_of(int64_t row) const { return query + row % rows / together; }
  // Query t sees keys 0 .. kv_len - q_len + t.
  CADRE_DEVICE int64_t num_seen(int64_t row) const { return kv_len - q_len + query_of(row) + 1; }
  CADRE_DEVICE int64_t sequence_of(int64_t row) const { return by_sequence ? first + row / rows : sequence; }
  CADRE_DEVICE int64_t head_of(int64_t row) const {
    const int64_t kv_head = by_sequence ? 0 : first + row / rows;
    return kv_head * group + pass * together + row % together;
  }
  CADRE_DEVICE int64_t output_row(int64_t row) const {
    return (sequence_of(row) * q_len + query_of(row)) * num_heads + head_of(row);
  }
  CADRE_DEVICE int64_t lse_index(int64_t row) const {
    return (sequence_of(row) * num_heads + head_of(row)) * q_len + query_of(row);
  }
  // Where the first matrix begins in queries of `width` elements, and in keys.
  int64_t query_start(int64_t width) const {
    const int64_t of = by_sequence ? first : sequence;
    const int64_t head = (by_sequence ? 0 : first * group) + pass * together;
    return ((of * q_len + query) * num_heads + head) * width;
  }
  int64_t key_start(int64_t kv_stride, int64_t width) const {
    return by_sequence ? first * kv_stride * width : (sequence * kv_stride * num_kv_heads + first) * width;
  }
};

// Calls f(tile) for each, later queries behind earlier ones.
template <class F>
void each_tile(const AttentionPlan& plan, const F& f) {
  const AttentionShape& shape = plan.shape;
  for (int64_t query = 0; query < shape.q_len; query += plan.tile()) {
    const int64_t queries = std::min(plan.tile(), shape.q_len - query);
    AttentionTile tile = {.sequence = 0,
                          .first = 0,
                          .count = 0,
                          .pass = 0,
                          .query = query,
                          .rows = queries * plan.together,
                          .keys = shape.kv_len - shape.q_len + query + queries,
                          .q_len = shape.q_len,
                          .kv_len = shape.kv_len,
                          .num_heads = shape.num_heads,
                          .num_kv_heads = shape.num_kv_heads,
                          .group = plan.group,
                          .together = plan.together,
                          .by_sequence = plan.by_sequence};
    const int64_t most = std::max<int64_t>(1, kScoreFloats / (tile.rows * tile.row_floats()));
    for (; tile.sequence < (plan.by_sequence ? 1 : shape.batch); ++tile.sequence) {
      for (tile.first = 0; tile.first < plan.matrices; tile.first += most) {
        tile.count = std::min(most, plan.matrices - tile.first);
        for (tile.pass = 0; tile.pass < plan.group / plan.together; ++tile.pass) f(tile);
      }
    }
  }
}

// A block a row: scores become probabilities, 0 behind the last key that is seen.
template <class T>
struct SoftmaxScores {
  AttentionTile tile;
  float scale;
  float* scores;
  T* p;  // where T is float, the scores
  float* lse;
  CADRE_DEVICE int threads() const { return threads_for(tile.keys); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t seen = tile.num_seen(block.index());
    float* row = scores + block.index() * tile.row_floats();
    T* out = p + block.index() * tile.row_floats();
    const float top = block.reduce(
        seen, -INFINITY, [&](int64_t i) { return scale * row[i]; }, Larger());
    block.each(tile.keys, [&](int64_t i) { row[i] = i < seen ? expf(scale * row[i] - top) : 0.0F; });
    const float denominator = sum(block, seen, [&](int64_t i) { return row[i]; });
    block.each(tile.keys, [&](int64_t i) { store(out[i], row[i] / denominator); });
    block.each(1, [&](int64_t) { lse[tile.lse_index(block.index())] = top + logf(denominator); });
  }
};

// A block a row: with p the probabilities, scores become p, and dout v^T becomes scale p (dout v^T - <dout, out>).
template <class T>
struct ScoreGrads {
  AttentionTile tile;
  float scale;
  int64_t value_dim;
  const float* lse;
  const float* out;
  const float* dout;
  const float* scores;
  const float* value_dots;
  T* p;   // where T is float, the scores
  T* ds;  // and the value_dots
  CADRE_DEVICE int threads() const { return threads_for(tile.keys); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t seen = tile.num_seen(block.index());
    const int64_t first = block.index() * tile.row_floats();
    const float shift = lse[tile.lse_index(block.index())];
    const int64_t at = tile.output_row(block.index()) * value_dim;
    const float out_dot = sum(block, value_dim, [&](int64_t i) { return dout[at + i] * out[at + i]; });
    block.each(tile.keys, [&](int64_t i) {
      const float probability = i < seen ? expf(scale * scores[first + i] - shift) : 0.0F;
      const float slope = i < seen ? scale * probability * (value_dots[first + i] - out_dot) : 0.0F;
      store(p[first + i], probability);
      store(ds[first + i], slope);
    });
  }
};

// The rows of a gradient that attention_grad writes.
struct ZeroKeys {
  float* rows;
  int64_t kv_len;
  int64_t kv_stride;
  int64_t width;  // of all heads
  CADRE_DEVICE void operator()(int64_t i) const {
    rows[(i / width / kv_len * kv_stride + i / width % kv_len) * width + i % width] = 0.0F;
  }
};

// `values` as products of T take them.
template <class T, class Call>
const T* as_operand(Call& call, const Tensor& values) {
  if constexpr (std::is_same_v<T, float>) {
    return call.in(values);
  } else {
    T* rounded = call.template scratch<T>(values.numel());
    call.elements(values.numel(), ToBf16{call.in(values), rounded});
    return rounded;
  }
}

// Scratch for the scores of any tile, as T.
template <class T, class Call>
T* score_room(Call& call, const AttentionPlan& plan) {
  int64_t most = 0;
  each_tile(plan,
            [&](const AttentionTile& tile) { most = std::max(most, tile.count * tile.rows * tile.row_floats()); });
  return call.template scratch<T>(most);
}

// rows x keys of a tile: its queries (or gradients of outputs) times keys (or values), over `width` elements.
template <class T, class Call>
void multiply_scores(Call& call, const AttentionPlan& plan, const AttentionTile& tile, const T* queries, const T* keys,
                     int64_t width, int64_t key_width, float* scores) {
  const ProductShape shape = {tile.rows,
                              tile.keys,
                              width,
                              false,
                              true,
                              Accumulate::no,
                              tile.count,
                              plan.query_strides(width),
                              plan.key_strides(key_width),
                              {tile.row_floats(), tile.rows * tile.row_floats()}};
  call.multiply(shape, queries + tile.query_start(width), keys + tile.key_start(plan.shape.kv_stride, key_width),
                scores);
}
// A row for each query: probabilities, or gradients of scores, times values or keys.
template <class T, class Call>
void multiply_keys(Call& call, const AttentionPlan& plan, const AttentionTile& tile, const T* scores, const T* keys,
                   int64_t width, int64_t key_width, float* result) {
  const ProductShape shape = {tile.rows,
                              width,
                              tile.keys,
                              false,
                              false,
                              Accumulate::no,
                              tile.count,
                              {tile.row_floats(), tile.rows * tile.row_floats()},
                              plan.key_strides(key_width),
                              plan.query_strides(width)};
  call.multiply(shape, scores, keys + tile.key_start(plan.shape.kv_stride, key_width),
                result + tile.query_start(width));
}
// Adds to a row for each key: the transposed scores times queries or gradients of outputs.
template <class T, class Call>
void add_queries(Call& call, const AttentionPlan& plan, const AttentionTile& tile, const T* scores, const T* queries,
                 int64_t width, float* result) {
  const ProductShape shape = {tile.keys,
                              width,
                              tile.rows,
                              true,
                              false,
                              Accumulate::yes,
                              tile.count,
                              {tile.row_floats(), tile.rows * tile.row_floats()},
                              plan.query_strides(width),
                              plan.key_strides(width)};
  call.multiply(shape, scores, queries + tile.query_start(width), result + tile.key_start(plan.shape.kv_stride, width));
}

// kernels.hpp has the formulas.
template <class T, class Call>
void attend(Call& call, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
            const Tensor& out, const Tensor& lse) {
  const AttentionPlan plan(shape);
  const int64_t value_width = v.dim(2);
  const T* queries = as_operand<T>(call, q);
  const T* keys = as_operand<T>(call, k);
  const T* values = v.raw() == k.raw() ? keys : as_operand<T>(call, v);
  float* const outs = call.out(out);
  float* const lses = call.out(lse);
  float* const scores = score_room<float>(call, plan);
  T* p;
  if constexpr (std::is_same_v<T, float>) {
    p = scores;
  } else {
    p = score_room<T>(call, plan);
  }
  each_tile(plan, [&](const AttentionTile& tile) {
    multiply_scores(call, plan, tile, queries, keys, shape.head_dim, shape.head_dim, scores);
    call.blocks(tile.count * tile.rows, SoftmaxScores<T>{tile, static_cast<float>(shape.scale), scores, p, lses});
    multiply_keys(call, plan, tile, p, values, shape.value_dim, value_width, outs);
  });
}

template <class T, class Call>
void attend_grad(Call& call, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                 const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq, const Tensor& dk,
                 const Tensor& dv) {
  const AttentionPlan plan(shape);
  const T* queries = as_operand<T>(call, q);
  const T* keys = as_operand<T>(call, k);
  const T* values = as_operand<T>(call, v);
  const T* grads = as_operand<T>(call, dout);
  const float* lses = call.in(lse);
  const float* outs = call.in(out);
  const float* douts = call.in(dout);
  float* const query_grads = call.out(dq);
  float* const key_grads = call.both(dk);
  float* const value_grads = call.both(dv);
  float* const scores = score_room<float>(call, plan);
  float* const value_dots = score_room<float>(call, plan);
  T* p;
  T* ds;
  if constexpr (std::is_same_v<T, float>) {
    p = scores;
    ds = value_dots;
  } else {
    p = score_room<T>(call, plan);
    ds = score_room<T>(call, plan);
  }
  const auto zero = [&](float* rows, int64_t width) {
    width *= shape.num_kv_heads;
    call.elements(shape.batch * shape.kv_len * width, ZeroKeys{rows, shape.kv_len, shape.kv_stride, width});
  };
  zero(key_grads, shape.head_dim);
  zero(value_grads, shape.value_dim);
  each_tile(plan, [&](const AttentionTile& tile) {
    multiply_scores(call, plan, tile, queries, keys, shape.head_dim, shape.head_dim, scores);
    multiply_scores(call, plan, tile, grads, values, shape.value_dim, shape.value_dim, value_dots);
    call.blocks(tile.count * tile.rows, ScoreGrads<T>{tile, static_cast<float>(shape.scale), shape.value_dim, lses,
                                                      outs, douts, scores, value_dots, p, ds});
    multiply_keys(call, plan, tile, ds, keys, shape.head_dim, shape.head_dim, query_grads);
    add_queries(call, plan, tile, ds, queries, shape.head_dim, key_grads);
    add_queries(call, plan, tile, p, grads, shape.value_dim, value_grads);
  });
}

}  // namespace cadre::gpu
