// SPDX-License-Identifier: Apache-2.0
// Causal attention, a tile of queries of one head at a time: its scores are one product and stay in cache, and the
// keys behind the tile's last query are never touched.
#include <algorithm>
#include <cmath>

#include "layers/kernels/cpu.hpp"
#include "layers/kernels/cpu_gemm.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu_attention.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu_vector_inl.hpp"
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
                 size_t num_keys, size_t width, size_t head_dim) {
  const double out_dot = sum_vectors(
      head_dim, [=](size_t i, auto lanes) HWY_ATTR { return hn::Mul(lanes.load(out + i), lanes.load(dout + i)); });
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

// Up to kTileRows queries that share a key/value head.
struct Tile {
  int64_t rows;
  int64_t q_offset;    // first element in q, out, dout, dq
  int64_t q_stride;    // elements from a row to the next
  int64_t kv_offset;   // first element of key 0 in k, v, dk, dv
  int64_t kv_stride;   // elements from a key to the next
  int64_t lse_offset;  // first element in lse; rows follow each other
  int64_t first_keys;  // keys that row 0 sees
  int64_t keys_step;   // how many more each next row sees

  int64_t keys_of(int64_t row) const { return first_keys + row * keys_step; }
  int64_t width() const { return keys_of(rows - 1); }
};

// Rows of one head are consecutive queries. When a sequence has one query (decoding), the query heads of a group are
// the rows instead: they read the same keys.
template <class Body>
void for_each_tile(const AttentionShape& shape, Body&& body) {
  const bool decoding = shape.q_len == 1;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t heads_in_block = decoding ? group : 1;
  const int64_t rows_in_block = decoding ? group : shape.q_len;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t head = 0; head < shape.num_heads; head += heads_in_block) {
      const int64_t kv_row = b * shape.kv_stride * shape.num_kv_heads + head / group;
      for (int64_t first = 0; first < rows_in_block; first += kTileRows) {
        const int64_t q_stride = decoding ? shape.head_dim : shape.num_heads * shape.head_dim;
        body(Tile{.rows = std::min(kTileRows, rows_in_block - first),
                  .q_offset = (b * shape.q_len * shape.num_heads + head) * shape.head_dim + first * q_stride,
                  .q_stride = q_stride,
                  .kv_offset = kv_row * shape.head_dim,
                  .kv_stride = shape.num_kv_heads * shape.head_dim,
                  .lse_offset = (b * shape.num_heads + head) * shape.q_len + first,
                  .first_keys = decoding ? shape.kv_len : shape.kv_len - shape.q_len + first + 1,
                  .keys_step = decoding ? 0 : 1});
      }
    }
  }
}

// out[rows, width] = alpha q k^T, where q is the tile's part of q or dout and k its part of k or v.
void tile_products(const Tile& tile, int64_t head_dim, float alpha, const float* q, const float* k, float* out) {
  gemm({tile.rows, tile.width(), head_dim}, {q + tile.q_offset, tile.q_stride},
       {k + tile.kv_offset, tile.kv_stride, /*transposed=*/true}, out, tile.width(), alpha);
}

void attend(const Tile& tile, const AttentionShape& shape, const float* q, const float* k, const float* v, float* out,
            float* lse, float* scores) {
  const int64_t width = tile.width();
  tile_products(tile, shape.head_dim, static_cast<float>(shape.scale), q, k, scores);
  float sums[kTileRows];
  for (int64_t row = 0; row < tile.rows; ++row) {
    float largest = 0.0F;
    HWY_DYNAMIC_DISPATCH(exp_scores)
    (scores + row * width, static_cast<size_t>(tile.keys_of(row)), static_cast<size_t>(width), &largest, sums + row);
    lse[tile.lse_offset + row] = largest + std::log(sums[row]);
  }
  float* tile_out = out + tile.q_offset;
  gemm({tile.rows, shape.head_dim, width}, {scores, width}, {v + tile.kv_offset, tile.kv_stride}, tile_out,
       tile.q_stride);
  for (int64_t row = 0; row < tile.rows; ++row) {
    HWY_DYNAMIC_DISPATCH(scale_values)
    (tile_out + row * tile.q_stride, 1.0F / sums[row], static_cast<size_t>(shape.head_dim));
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
void attend_grad(const Tile& tile, const AttentionShape& shape, const GradTensors& at, float* scores, float* grads) {
  const int64_t width = tile.width();
  const int64_t head_dim = shape.head_dim;
  const auto scale = static_cast<float>(shape.scale);
  tile_products(tile, head_dim, scale, at.q, at.k, scores);
  tile_products(tile, head_dim, 1.0F, at.dout, at.v, grads);
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t q_row = tile.q_offset + row * tile.q_stride;
    HWY_DYNAMIC_DISPATCH(score_grads)
    (scores + row * width, grads + row * width, at.lse[tile.lse_offset + row], at.out + q_row, at.dout + q_row, scale,
     static_cast<size_t>(tile.keys_of(row)), static_cast<size_t>(width), static_cast<size_t>(head_dim));
  }
  gemm({tile.rows, head_dim, width}, {grads, width}, {at.k + tile.kv_offset, tile.kv_stride}, at.dq + tile.q_offset,
       tile.q_stride);
  const GemmShape to_keys{width, head_dim, tile.rows};
  gemm(to_keys, {grads, width, /*transposed=*/true}, {at.q + tile.q_offset, tile.q_stride}, at.dk + tile.kv_offset,
       tile.kv_stride, 1.0F, 1.0F);
  gemm(to_keys, {scores, width, /*transposed=*/true}, {at.dout + tile.q_offset, tile.q_stride}, at.dv + tile.kv_offset,
       tile.kv_stride, 1.0F, 1.0F);
}

void clear_live_rows(const AttentionShape& shape, const Tensor& grad) {
  for (int64_t b = 0; b < shape.batch; ++b) grad.rows(b * shape.kv_stride, shape.kv_len).fill_zero();
}

}  // namespace

void CpuKernels::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& out, const Tensor& lse) const {
  float* scores = cpu::scratch_floats(static_cast<size_t>(kTileRows * shape.kv_len));
  for_each_tile(shape, [&](const Tile& tile) {
    attend(tile, shape, q.data<float>(), k.data<float>(), v.data<float>(), out.data<float>(), lse.data<float>(),
           scores);
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
  float* scores = cpu::scratch_floats(static_cast<size_t>(2 * tile_floats));
  for_each_tile(shape, [&](const Tile& tile) { attend_grad(tile, shape, tensors, scores, scores + tile_floats); });
}

}  // namespace cadre
#endif  // HWY_ONCE
