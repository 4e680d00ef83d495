// SPDX-License-Identifier: Apache-2.0
// Bodies over a row of scores or logits, a block a row.
#pragma once

#include <cmath>

#include "layers/kernels/gpu/block.hpp"

namespace cadre::gpu {

// Of a block that has a token's scores for experts: as long as there are few, a warp, which waits for nobody.
inline constexpr int64_t kWarpScores = kWarp * kWarp;
CADRE_DEVICE constexpr int threads_for_scores(int64_t count) { return count <= kWarpScores ? kWarp : kThreads; }

template <class Block>
CADRE_DEVICE float largest(Block& block, const float* row, int64_t count) {
  return block.reduce(
      count, -INFINITY, [&](int64_t i) { return row[i]; }, Larger());
}

template <class Block>
CADRE_DEVICE float log_sum_exp(Block& block, const float* row, int64_t count) {
  const float top = largest(block, row, count);
  return top + logf(sum(block, count, [&](int64_t i) { return expf(row[i] - top); }));
}

struct Softmax {
  const float* x;
  float* y;
  int64_t width;
  CADRE_DEVICE int threads() const { return threads_for_scores(width); }
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* in = x + block.index() * width;
    float* out = y + block.index() * width;
    const float top = largest(block, in, width);
    const float total = sum(block, width, [&](int64_t i) { return expf(in[i] - top); });
    block.each(width, [&](int64_t i) { out[i] = expf(in[i] - top) / total; });
  }
};

struct SoftmaxGrad {
  const float* y;
  const float* dy;
  float* dx;
  int64_t width;
  CADRE_DEVICE int threads() const { return threads_for_scores(width); }
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t first = block.index() * width;
    const float mean = sum(block, width, [&](int64_t i) { return y[first + i] * dy[first + i]; });
    block.each(width, [&](int64_t i) { dx[first + i] = y[first + i] * (dy[first + i] - mean); });
  }
};

struct CrossEntropy {
  const float* logits;
  const int32_t* targets;
  float* losses;
  int64_t width;
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* row = logits + block.index() * width;
    const int32_t target = targets[block.index()];
    const float loss = target < 0 ? 0.0F : log_sum_exp(block, row, width) - row[target];
    block.each(1, [&](int64_t) { losses[block.index()] = loss; });
  }
};

struct CrossEntropyGrad {
  const float* logits;
  const int32_t* targets;
  float* dlogits;
  int64_t width;
  float scale;
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* row = logits + block.index() * width;
    float* grad = dlogits + block.index() * width;
    const int32_t target = targets[block.index()];
    const float denominator = target < 0 ? 0.0F : log_sum_exp(block, row, width);
    block.each(width, [&](int64_t i) {
      grad[i] = target < 0 ? 0.0F : scale * (expf(row[i] - denominator) - (i == target ? 1.0F : 0.0F));
    });
  }
};

}  // namespace cadre::gpu
