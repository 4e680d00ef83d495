// SPDX-License-Identifier: Apache-2.0
// Causal attention, a tile of queries of one head at a time: its scores are one product and stay in cache, and the
// keys behind the tile's last query are never touched. A few queries, as in decoding, are computed each for itself: the bits
// of one do not depend on the others.
#include <algorithm>
#include <cmath>
#include <vector>

#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/gemm.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

// scores[keys] of one query become exp(score - largest), zero behind num_keys. Returns largest and the sum.
void exp_scores(float* scores, size_t num_keys, size_t width, float* largest, float* sum) {
  *largest = max_of_row(scores, num_keys);
  const Float shift = splat(*largest);
  *sum = static_cast<float>(sum_vectors(num_keys, [=](size_t i, auto lanes) HWY_ATTR {
    const Float e = exponential(hn::Sub(lanes.load(scores + i), shift));
    lanes.store(e, scores + i);
    return e;
  }));
  std::fill(scores + num_keys, scores + width, 0.0F);
}

void scale_values(float* row, float factor, size_t width) {
  const Float scale = splat(factor);
  for_each_vector(width,
                  [=](size_t i, auto lanes) HWY_ATTR { lanes.store(hn::Mul(scale, lanes.load(row + i)), row + i); });
}

// scores become probabilities exp(score - lse), and grads (dout v^T) become scale p (grad - <dout, out>): the gradient
// of the products q k^T. Both are zero behind num_keys.
void score_grads(float* scores, float* grads, float lse, const float* out, const float* dout, float scale,
                 size_t num_keys, size_t width, size_t value_dim) {
  const double out_dot = sum_vectors(
      value_dim, [=](size_t i, auto lanes) HWY_ATTR { return hn::Mul(lanes.load(out + i), lanes.load(dout + i)); });
  const Float shift = splat(lse);
  const Float mean = splat(static_cast<float>(out_dot));
  const Float factor = splat(scale);
  for_each_vector(num_keys, [=](size_t i, auto lanes) HWY_ATTR {
    const Float p = exponential(hn::Sub(lanes.load(scores + i), shift));
    lanes.store(p, scores + i);
    lanes.store(hn::Mul(hn::Mul(factor, p), hn::Sub(lanes.load(grads + i), mean)), grads + i);
  });
  std::fill(scores + num_keys, scores + width, 0.0F);
  std::fill(grads + num_keys, grads + width, 0.0F);
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(exp_scores);
HWY_EXPORT(scale_values);
HWY_EXPORT(score_grads);

namespace {

// Enough rows for the products to run at full speed; two tiles of 64 x 1,024 scores fill a second cache of 512 KiB.
constexpr int64_t kTileRows = 64;

// A token and those drafted behind it.
constexpr int64_t kFewQueries = 16;

// Rows of one head in a tensor of heads: the first element of row 0, and elements from a row to the next.
struct HeadRange {
  int64_t offset;
  int64_t stride;
};

// Up to kTileRows queries that share a key/value head.
struct Tile {
  int64_t rows;
  HeadRange q;         // in q, dq
  HeadRange out;       // in out, dout
  HeadRange k;         // in k, dk, from key 0
  HeadRange v;         // in v, dv
  int64_t lse_offset;  // first element in lse; rows follow each other
  int64_t first_keys;  // keys that row 0 sees
  int64_t keys_step;   // how many more each next row sees

  int64_t keys_of(int64_t row) const { return first_keys + row * keys_step; }
  int64_t width() const { return keys_of(rows - 1); }
};

// The tiles of key/value head `block` % NKV of sequence `block` / NKV, one behind the other. Rows of a tile are consecutive
// queries of one head. When a sequence has one query (decoding), the query heads of a group are the rows instead: they read
// the same keys. v_width: elements of a row of v.
template <class Body>
void for_each_tile(const AttentionShape& shape, int64_t block, int64_t v_width, Body&& body) {
  const bool decoding = shape.q_len == 1;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t heads_in_tile = decoding ? group : 1;
  const int64_t rows_of_head = decoding ? group : shape.q_len;
  const int64_t b = block / shape.num_kv_heads;
  const int64_t kv_head = block % shape.num_kv_heads;
  const int64_t kv_row = b * shape.kv_stride * shape.num_kv_heads + kv_head;
  const auto keys = [&](int64_t dim) { return HeadRange{kv_row * dim, shape.num_kv_heads * dim}; };
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head += heads_in_tile) {
    for (int64_t first = 0; first < rows_of_head; first += kTileRows) {
      const int64_t row_step = decoding ? 1 : shape.num_heads;
      const int64_t q_row = b * shape.q_len * shape.num_heads + head + first * row_step;
      const auto queries = [&](int64_t dim) { return HeadRange{q_row * dim, row_step * dim}; };
      body(Tile{.rows = std::min(kTileRows, rows_of_head - first),
                .q = queries(shape.head_dim),
                .out = queries(shape.value_dim),
                .k = keys(shape.head_dim),
                .v = keys(v_width),
                .lse_offset = (b * shape.num_heads + head) * shape.q_len + first,
                .first_keys = decoding ? shape.kv_len : shape.kv_len - shape.q_len + first + 1,
                .keys_step = decoding ? 0 : 1});
    }
  }
}

GemmOperand operand(const float* data, const HeadRange& range, bool transposed = false) {
  return {data + range.offset, range.stride, transposed};
}

void attend(const Tile& tile, const AttentionShape& shape, const float* q, const float* k, const float* v, float* out,
            float* lse, float* scores, const ProductChoice& choice, bool by_rows) {
  const int64_t width = tile.width();
  const auto product = [&](GemmLayout layout, const GemmShape& of, auto... operands) {
    if (by_rows) return row_gemm(of, operands...);
    gemm(choice.library(layout, of.m), of, operands...);
  };
  product(GemmLayout::nt, {tile.rows, width, shape.head_dim}, operand(q, tile.q),
          operand(k, tile.k, /*transposed=*/true), scores, width, static_cast<float>(shape.scale));
  float sums[kTileRows];
  for (int64_t row = 0; row < tile.rows; ++row) {
    float largest = 0.0F;
    HWY_DYNAMIC_DISPATCH(exp_scores)
    (scores + row * width, static_cast<size_t>(tile.keys_of(row)), static_cast<size_t>(width), &largest, sums + row);
    lse[tile.lse_offset + row] = largest + std::log(sums[row]);
  }
  float* tile_out = out + tile.out.offset;
  product(GemmLayout::nn, {tile.rows, shape.value_dim, width}, GemmOperand{scores, width}, operand(v, tile.v), tile_out,
          tile.out.stride);
  for (int64_t row = 0; row < tile.rows; ++row) {
    HWY_DYNAMIC_DISPATCH(scale_values)
    (tile_out + row * tile.out.stride, 1.0F / sums[row], static_cast<size_t>(shape.value_dim));
  }
}

struct GradTensors {
  const float* q;
  const float* k;
  const float* v;
  const float* out;
  const float* lse;
  const float* dout;
  float* dq;
  float* dk;
  float* dv;
};

// With p the probabilities: dv += p^T dout, ds = scale p (dout v^T - <dout, out>), dq = ds k, dk += ds^T q.
void attend_grad(const Tile& tile, const AttentionShape& shape, const GradTensors& at, float* scores, float* grads,
                 const ProductChoice& choice) {
  const int64_t width = tile.width();
  const auto scale = static_cast<float>(shape.scale);
  const GemmLibrary nt = choice.library(GemmLayout::nt, tile.rows);
  const GemmLibrary nn = choice.library(GemmLayout::nn, tile.rows);
  const GemmLibrary tn = choice.library(GemmLayout::tn, tile.rows);
  gemm(nt, {tile.rows, width, shape.head_dim}, operand(at.q, tile.q), operand(at.k, tile.k, /*transposed=*/true),
       scores, width, scale);
  gemm(nt, {tile.rows, width, shape.value_dim}, operand(at.dout, tile.out), operand(at.v, tile.v, /*transposed=*/true),
       grads, width);
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t out_row = tile.out.offset + row * tile.out.stride;
    HWY_DYNAMIC_DISPATCH(score_grads)
    (scores + row * width, grads + row * width, at.lse[tile.lse_offset + row], at.out + out_row, at.dout + out_row,
     scale, static_cast<size_t>(tile.keys_of(row)), static_cast<size_t>(width), static_cast<size_t>(shape.value_dim));
  }
  gemm(nn, {tile.rows, shape.head_dim, width}, {grads, width}, operand(at.k, tile.k), at.dq + tile.q.offset,
       tile.q.stride);
  gemm(tn, {width, shape.head_dim, tile.rows}, {grads, width, /*transposed=*/true}, operand(at.q, tile.q),
       at.dk + tile.k.offset, tile.k.stride, 1.0F, 1.0F);
  gemm(tn, {width, shape.value_dim, tile.rows}, {scores, width, /*transposed=*/true}, operand(at.dout, tile.out),
       at.dv + tile.v.offset, tile.v.stride, 1.0F, 1.0F);
}

void clear_live_rows(const AttentionShape& shape, const Tensor& grad) {
  for (int64_t b = 0; b < shape.batch; ++b) grad.rows(b * shape.kv_stride, shape.kv_len).fill_zero();
}

// Calls `attend` for each query as if it were the only one of its sequence.
template <class Attend>
void one_by_one(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                const Tensor& lse, Attend&& attend) {
  std::vector<float> query_lse(static_cast<size_t>(shape.num_heads));
  const Tensor lse_view(query_lse.data(), DType::f32, {1, shape.num_heads, 1});
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t first_key = b * shape.kv_stride;
    for (int64_t t = 0; t < shape.q_len; ++t) {
      const int64_t row = b * shape.q_len + t;
      AttentionShape one = shape;
      one.batch = one.q_len = 1;
      one.kv_len = shape.kv_len - shape.q_len + t + 1;
      attend(one, q.rows(row, 1), k.rows(first_key, one.kv_len), v.rows(first_key, one.kv_len), out.rows(row, 1),
             lse_view);
      for (int64_t head = 0; head < shape.num_heads; ++head) {
        lse.data<float>()[(b * shape.num_heads + head) * shape.q_len + t] = query_lse[static_cast<size_t>(head)];
      }
    }
  }
}

}  // namespace

void CpuKernels::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& out, const Tensor& lse) const {
  if (!rows_independent_ && shape.q_len > 1 && shape.q_len <= kFewQueries) {
    return one_by_one(shape, q, k, v, out, lse, [this](auto&&... one) { attention(one...); });
  }
  threads_.run(shape.batch * shape.num_kv_heads, [&](int64_t block) {
    float* scores = cpu::part_scratch(static_cast<size_t>(kTileRows * shape.kv_len));
    for_each_tile(shape, block, v.dim(2), [&](const Tile& tile) {
      attend(tile, shape, q.data<float>(), k.data<float>(), v.data<float>(), out.data<float>(), lse.data<float>(),
             scores, choice_, rows_independent_ || shape.q_len == 1);
    });
  });
}

void CpuKernels::attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                                const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq,
                                const Tensor& dk, const Tensor& dv) const {
  const GradTensors tensors{q.data<float>(),   k.data<float>(),   v.data<float>(),
                            out.data<float>(), lse.data<float>(), dout.data<float>(),
                            dq.data<float>(),  dk.data<float>(),  dv.data<float>()};
  clear_live_rows(shape, dk);
  clear_live_rows(shape, dv);
  const int64_t tile_floats = kTileRows * shape.kv_len;
  threads_.run(shape.batch * shape.num_kv_heads, [&](int64_t block) {
    float* scores = cpu::part_scratch(static_cast<size_t>(2 * tile_floats));
    for_each_tile(shape, block, shape.value_dim,
                  [&](const Tile& tile) { attend_grad(tile, shape, tensors, scores, scores + tile_floats, choice_); });
  });
}

}  // namespace cadre
#endif  // HWY_ONCE
