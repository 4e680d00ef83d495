// SPDX-License-Identifier: Apache-2.0
// Causal attention in tiles (Dao et al. 2022): a block a tile, the other side of it streamed through shared memory. Sums
// run in a fixed order and nothing is added by two blocks, so equal calls give equal bits. Correct first: products run
// on plain floats, not on tensor cores.
#pragma once

#include <cmath>

#include "layers/kernels/gpu/block.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

// Rows of queries and of keys in a tile: the most, from 32 down, whose buffers fit in shared memory.
// `floats_of(tile)` says how many floats those are; 0 when not even one row fits.
template <class FloatsOf>
int64_t attention_tile(const FloatsOf& floats_of) {
  int64_t tile = 32;
  while (tile > 0 && floats_of(tile) > kSharedFloats) tile /= 2;
  return tile;
}

CADRE_DEVICE inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// `count` rows of `width` into shared memory; row i starts at from + i * stride.
template <class Block>
CADRE_DEVICE void load_rows(Block& block, const float* from, int64_t stride, int64_t count, int64_t width, float* to) {
  block.each(count * width, [&](int64_t i) { to[i] = from[i / width * stride + i % width]; });
}

CADRE_DEVICE inline float dot(const float* a, const float* b, int64_t count) {
  float total = 0.0F;
  for (int64_t i = 0; i < count; ++i) total += a[i] * b[i];
  return total;
}

// Where the rows of one head of one sequence lie. Strides are those from a token to the next.
struct AttentionPlan {
  int64_t q_len, kv_len, kv_stride, num_heads, num_kv_heads, head_dim, value_dim, v_width;
  float scale;
  int64_t tile;

  static AttentionPlan of(const AttentionShape& shape, int64_t v_width) {
    return {shape.q_len,
            shape.kv_len,
            shape.kv_stride,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.value_dim,
            v_width,
            static_cast<float>(shape.scale),
            0};
  }
  CADRE_DEVICE int64_t query_row(int64_t b, int64_t t, int64_t head) const {
    return (b * q_len + t) * num_heads + head;
  }
  CADRE_DEVICE int64_t key_row(int64_t b, int64_t j, int64_t kv_head) const {
    return (b * kv_stride + j) * num_kv_heads + kv_head;
  }
  CADRE_DEVICE int64_t lse_index(int64_t b, int64_t t, int64_t head) const {
    return (b * num_heads + head) * q_len + t;
  }
  CADRE_DEVICE int64_t kv_head_of(int64_t head) const { return head / (num_heads / num_kv_heads); }
  // Query t sees keys 0 .. last_key(t).
  CADRE_DEVICE int64_t last_key(int64_t t) const { return kv_len - q_len + t; }
  CADRE_DEVICE int64_t query_stride() const { return num_heads * head_dim; }
  CADRE_DEVICE int64_t out_stride() const { return num_heads * value_dim; }
  CADRE_DEVICE int64_t key_stride() const { return num_kv_heads * head_dim; }
  CADRE_DEVICE int64_t value_stride() const { return num_kv_heads * v_width; }
};

// The tile of queries that a block has: queries first .. first + rows of one head.
struct QueryTile {
  int64_t b, head, kv_head, first, rows;
  CADRE_DEVICE QueryTile(const AttentionPlan& plan, int64_t block) {
    const int64_t tiles = tiles_of(plan.q_len, plan.tile);
    b = block / tiles / plan.num_heads;
    head = block / tiles % plan.num_heads;
    kv_head = plan.kv_head_of(head);
    first = block % tiles * plan.tile;
    rows = least(plan.tile, plan.q_len - first);
  }
};

// Blocks: batch x heads x tiles of queries.
struct AttentionForward {
  AttentionPlan plan;
  const float* q;
  const float* k;
  const float* v;
  float* out;
  float* lse;

  static int64_t floats_of(const AttentionPlan& plan, int64_t tile) {
    const int64_t wider = plan.head_dim > plan.value_dim ? plan.head_dim : plan.value_dim;
    return tile * (plan.head_dim + plan.value_dim + wider + tile + 3);
  }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const QueryTile at(plan, block.index());
    const int64_t dim = plan.head_dim;
    const int64_t value_dim = plan.value_dim;
    float* queries = block.shared();                                      // [tile, dim]
    float* sums = queries + plan.tile * dim;                              // [tile, value_dim]
    float* loaded = sums + plan.tile * value_dim;                         // keys, then values
    float* p = loaded + plan.tile * (dim > value_dim ? dim : value_dim);  // [tile, tile]
    float* top = p + plan.tile * plan.tile;                               // [tile]: the largest score so far
    float* denominator = top + plan.tile;                                 // [tile]
    float* shrink = denominator + plan.tile;                              // [tile]: what older sums are multiplied by

    load_rows(block, q + plan.query_row(at.b, at.first, at.head) * dim, plan.query_stride(), at.rows, dim, queries);
    block.each(at.rows, [&](int64_t i) {
      top[i] = -INFINITY;
      denominator[i] = 0.0F;
    });
    block.each(at.rows * value_dim, [&](int64_t i) { sums[i] = 0.0F; });

    const int64_t num_keys = plan.last_key(at.first + at.rows - 1) + 1;
    for (int64_t key = 0; key < num_keys; key += plan.tile) {
      const int64_t keys = least(plan.tile, num_keys - key);
      load_rows(block, k + plan.key_row(at.b, key, at.kv_head) * dim, plan.key_stride(), keys, dim, loaded);
      block.each(at.rows * keys, [&](int64_t i) {
        const int64_t row = i / keys;
        const bool seen = key + i % keys <= plan.last_key(at.first + row);
        p[i] = seen ? plan.scale * dot(queries + row * dim, loaded + i % keys * dim, dim) : -INFINITY;
      });
      block.each(at.rows, [&](int64_t row) {
        float larger = top[row];
        for (int64_t j = 0; j < keys; ++j) larger = p[row * keys + j] > larger ? p[row * keys + j] : larger;
        shrink[row] = expf(top[row] - larger);
        float total = denominator[row] * shrink[row];
        for (int64_t j = 0; j < keys; ++j) {
          p[row * keys + j] = expf(p[row * keys + j] - larger);
          total += p[row * keys + j];
        }
        top[row] = larger;
        denominator[row] = total;
      });
      load_rows(block, v + plan.key_row(at.b, key, at.kv_head) * plan.v_width, plan.value_stride(), keys, value_dim,
                loaded);
      block.each(at.rows * value_dim, [&](int64_t i) {
        const float* probability = p + i / value_dim * keys;
        float total = sums[i] * shrink[i / value_dim];
        for (int64_t j = 0; j < keys; ++j) total += probability[j] * loaded[j * value_dim + i % value_dim];
        sums[i] = total;
      });
    }
    float* out_rows = out + plan.query_row(at.b, at.first, at.head) * value_dim;
    block.each(at.rows * value_dim, [&](int64_t i) {
      out_rows[i / value_dim * plan.out_stride() + i % value_dim] = sums[i] / denominator[i / value_dim];
    });
    block.each(at.rows,
               [&](int64_t i) { lse[plan.lse_index(at.b, at.first + i, at.head)] = top[i] + logf(denominator[i]); });
  }
};

// With p the probabilities: ds = scale p (dout v^T - <dout, out>), dq = ds k, dk = ds^T q, dv = p^T dout.
struct AttentionGradInputs {
  const float* q;
  const float* k;
  const float* v;
  const float* out;
  const float* lse;
  const float* dout;
};

// <dout, out> of each query of a tile, and its lse, into shared memory.
template <class Block>
CADRE_DEVICE void load_query_facts(Block& block, const AttentionPlan& plan, const AttentionGradInputs& in,
                                   const QueryTile& at, float* out_dots, float* lses) {
  block.each(at.rows, [&](int64_t i) {
    const int64_t row = plan.query_row(at.b, at.first + i, at.head) * plan.value_dim;
    out_dots[i] = dot(in.dout + row, in.out + row, plan.value_dim);
    lses[i] = in.lse[plan.lse_index(at.b, at.first + i, at.head)];
  });
}

// Blocks: batch x heads x tiles of queries.
struct AttentionQueryGrad {
  AttentionPlan plan;
  AttentionGradInputs in;
  float* dq;

  static int64_t floats_of(const AttentionPlan& plan, int64_t tile) {
    return tile * (3 * plan.head_dim + 2 * plan.value_dim + tile + 2);
  }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const QueryTile at(plan, block.index());
    const int64_t dim = plan.head_dim;
    const int64_t value_dim = plan.value_dim;
    float* queries = block.shared();                   // [tile, dim]
    float* douts = queries + plan.tile * dim;          // [tile, value_dim]
    float* keys_here = douts + plan.tile * value_dim;  // [tile, dim]
    float* values = keys_here + plan.tile * dim;       // [tile, value_dim]
    float* sums = values + plan.tile * value_dim;      // [tile, dim]
    float* ds = sums + plan.tile * dim;                // [tile, tile]
    float* out_dots = ds + plan.tile * plan.tile;      // [tile]
    float* lses = out_dots + plan.tile;                // [tile]

    load_rows(block, in.q + plan.query_row(at.b, at.first, at.head) * dim, plan.query_stride(), at.rows, dim, queries);
    load_rows(block, in.dout + plan.query_row(at.b, at.first, at.head) * value_dim, plan.out_stride(), at.rows,
              value_dim, douts);
    load_query_facts(block, plan, in, at, out_dots, lses);
    block.each(at.rows * dim, [&](int64_t i) { sums[i] = 0.0F; });

    const int64_t num_keys = plan.last_key(at.first + at.rows - 1) + 1;
    for (int64_t key = 0; key < num_keys; key += plan.tile) {
      const int64_t keys = least(plan.tile, num_keys - key);
      load_rows(block, in.k + plan.key_row(at.b, key, at.kv_head) * dim, plan.key_stride(), keys, dim, keys_here);
      load_rows(block, in.v + plan.key_row(at.b, key, at.kv_head) * value_dim, plan.value_stride(), keys, value_dim,
                values);
      block.each(at.rows * keys, [&](int64_t i) {
        const int64_t row = i / keys;
        const int64_t j = i % keys;
        const bool seen = key + j <= plan.last_key(at.first + row);
        const float score = plan.scale * dot(queries + row * dim, keys_here + j * dim, dim);
        const float value_dot = dot(douts + row * value_dim, values + j * value_dim, value_dim);
        ds[i] = seen ? plan.scale * expf(score - lses[row]) * (value_dot - out_dots[row]) : 0.0F;
      });
      block.each(at.rows * dim, [&](int64_t i) {
        float total = sums[i];
        for (int64_t j = 0; j < keys; ++j) total += ds[i / dim * keys + j] * keys_here[j * dim + i % dim];
        sums[i] = total;
      });
    }
    float* grads = dq + plan.query_row(at.b, at.first, at.head) * dim;
    block.each(at.rows * dim, [&](int64_t i) { grads[i / dim * plan.query_stride() + i % dim] = sums[i]; });
  }
};

// Blocks: batch x key/value heads x tiles of keys.
struct AttentionKeyGrad {
  AttentionPlan plan;
  AttentionGradInputs in;
  float* dk;
  float* dv;

  static int64_t floats_of(const AttentionPlan& plan, int64_t tile) {
    return tile * (3 * plan.head_dim + 3 * plan.value_dim + 2 * tile + 2);
  }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t tiles = tiles_of(plan.kv_len, plan.tile);
    const int64_t b = block.index() / tiles / plan.num_kv_heads;
    const int64_t kv_head = block.index() / tiles % plan.num_kv_heads;
    const int64_t key = block.index() % tiles * plan.tile;
    const int64_t keys = least(plan.tile, plan.kv_len - key);
    const int64_t group = plan.num_heads / plan.num_kv_heads;
    const int64_t dim = plan.head_dim;
    const int64_t value_dim = plan.value_dim;
    float* keys_here = block.shared();                    // [tile, dim]
    float* values = keys_here + plan.tile * dim;          // [tile, value_dim]
    float* key_sums = values + plan.tile * value_dim;     // [tile, dim]
    float* value_sums = key_sums + plan.tile * dim;       // [tile, value_dim]
    float* queries = value_sums + plan.tile * value_dim;  // [tile, dim]
    float* douts = queries + plan.tile * dim;             // [tile, value_dim]
    float* p = douts + plan.tile * value_dim;             // [tile, tile]
    float* ds = p + plan.tile * plan.tile;                // [tile, tile]
    float* out_dots = ds + plan.tile * plan.tile;         // [tile]
    float* lses = out_dots + plan.tile;                   // [tile]

    load_rows(block, in.k + plan.key_row(b, key, kv_head) * dim, plan.key_stride(), keys, dim, keys_here);
    load_rows(block, in.v + plan.key_row(b, key, kv_head) * value_dim, plan.value_stride(), keys, value_dim, values);
    block.each(keys * dim, [&](int64_t i) { key_sums[i] = 0.0F; });
    block.each(keys * value_dim, [&](int64_t i) { value_sums[i] = 0.0F; });

    const int64_t query_tiles = tiles_of(plan.q_len, plan.tile);
    for (int64_t step = 0; step < group * query_tiles; ++step) {
      const int64_t head = kv_head * group + step / query_tiles;
      const QueryTile at(plan, (b * plan.num_heads + head) * query_tiles + step % query_tiles);
      if (plan.last_key(at.first + at.rows - 1) < key) continue;  // the same for all threads
      load_rows(block, in.q + plan.query_row(b, at.first, head) * dim, plan.query_stride(), at.rows, dim, queries);
      load_rows(block, in.dout + plan.query_row(b, at.first, head) * value_dim, plan.out_stride(), at.rows, value_dim,
                douts);
      load_query_facts(block, plan, in, at, out_dots, lses);
      block.each(at.rows * keys, [&](int64_t i) {
        const int64_t row = i / keys;
        const int64_t j = i % keys;
        const bool seen = key + j <= plan.last_key(at.first + row);
        const float score = plan.scale * dot(queries + row * dim, keys_here + j * dim, dim);
        const float value_dot = dot(douts + row * value_dim, values + j * value_dim, value_dim);
        p[i] = seen ? expf(score - lses[row]) : 0.0F;
        ds[i] = plan.scale * p[i] * (value_dot - out_dots[row]);
      });
      block.each(keys * dim, [&](int64_t i) {
        float total = key_sums[i];
        for (int64_t row = 0; row < at.rows; ++row) total += ds[row * keys + i / dim] * queries[row * dim + i % dim];
        key_sums[i] = total;
      });
      block.each(keys * value_dim, [&](int64_t i) {
        float total = value_sums[i];
        for (int64_t row = 0; row < at.rows; ++row) {
          total += p[row * keys + i / value_dim] * douts[row * value_dim + i % value_dim];
        }
        value_sums[i] = total;
      });
    }
    float* key_grads = dk + plan.key_row(b, key, kv_head) * dim;
    float* value_grads = dv + plan.key_row(b, key, kv_head) * value_dim;
    block.each(keys * dim, [&](int64_t i) { key_grads[i / dim * plan.key_stride() + i % dim] = key_sums[i]; });
    block.each(keys * value_dim,
               [&](int64_t i) { value_grads[i / value_dim * plan.value_stride() + i % value_dim] = value_sums[i]; });
  }
};

}  // namespace cadre::gpu
