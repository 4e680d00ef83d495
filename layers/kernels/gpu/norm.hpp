// SPDX-License-Identifier: Apache-2.0
// Bodies that reduce along rows, a block a row: norms, with their weight gradients (a block a strip of columns), softmax
// and cross entropy; and the rotation of heads by position.
#pragma once

#include <cmath>
#include <cstdint>

#include "layers/kernels/gpu/block.hpp"

namespace cadre::gpu {

struct RmsNorm {
  const float* x;
  const float* weight;
  float* y;
  float* rstd;
  int64_t width;
  float epsilon;

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* in = x + block.index() * width;
    float* out = y + block.index() * width;
    const float squares = sum(block, width, [&](int64_t i) { return in[i] * in[i]; });
    const float inverse = 1.0F / sqrtf(squares / static_cast<float>(width) + epsilon);
    block.each(width, [&](int64_t i) { out[i] = weight[i] * in[i] * inverse; });
    block.each(1, [&](int64_t) { rstd[block.index()] = inverse; });
  }
};

struct RmsNormGrad {
  const float* dy;
  const float* x;
  const float* weight;
  const float* rstd;
  float* dx;
  int64_t width;

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t first = block.index() * width;
    const float inverse = rstd[block.index()];
    const float total =
        sum(block, width, [&](int64_t i) { return dy[first + i] * weight[i] * x[first + i] * inverse; });
    const float mean = total / static_cast<float>(width);
    block.each(width, [&](int64_t i) {
      dx[first + i] = inverse * (dy[first + i] * weight[i] - x[first + i] * inverse * mean);
    });
  }
};

struct LayerNorm {
  const float* x;
  const float* weight;
  const float* bias;
  float* y;
  float* mean;
  float* rstd;
  int64_t width;
  float epsilon;

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* in = x + block.index() * width;
    float* out = y + block.index() * width;
    const auto count = static_cast<float>(width);
    const float middle = sum(block, width, [&](int64_t i) { return in[i]; }) / count;
    const float squares = sum(block, width, [&](int64_t i) { return (in[i] - middle) * (in[i] - middle); });
    const float inverse = 1.0F / sqrtf(squares / count + epsilon);
    block.each(width, [&](int64_t i) { out[i] = weight[i] * (in[i] - middle) * inverse + bias[i]; });
    block.each(1, [&](int64_t) {
      mean[block.index()] = middle;
      rstd[block.index()] = inverse;
    });
  }
};

struct LayerNormGrad {
  const float* dy;
  const float* x;
  const float* weight;
  const float* mean;
  const float* rstd;
  float* dx;
  int64_t width;

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t first = block.index() * width;
    const float middle = mean[block.index()];
    const float inverse = rstd[block.index()];
    const auto normal = [&](int64_t i) { return (x[first + i] - middle) * inverse; };
    const auto grad = [&](int64_t i) { return dy[first + i] * weight[i]; };
    const float mean_grad = sum(block, width, grad) / static_cast<float>(width);
    const float mean_product =
        sum(block, width, [&](int64_t i) { return grad(i) * normal(i); }) / static_cast<float>(width);
    block.each(width, [&](int64_t i) { dx[first + i] = inverse * (grad(i) - mean_grad - normal(i) * mean_product); });
  }
};

// A block adds the rows of `kColumns` columns, in `kStrips` running sums that are joined in order.
inline constexpr int64_t kColumns = 32;
inline constexpr int64_t kStrips = kThreads / kColumns;

// sums[column] += term(row, column) over all rows.
template <class Block, class Term>
CADRE_DEVICE void add_columns(Block& block, int64_t rows, int64_t width, const Term& term, float* sums) {
  const int64_t first = block.index() * kColumns;
  const int64_t here = width - first < kColumns ? width - first : kColumns;
  float* strips = block.shared();  // [kStrips, here]
  block.each(kStrips * here, [&](int64_t i) {
    float total = 0.0F;
    for (int64_t row = i / here; row < rows; row += kStrips) total += term(row, first + i % here);
    strips[i] = total;
  });
  block.each(here, [&](int64_t column) {
    float total = strips[column];
    for (int64_t strip = 1; strip < kStrips; ++strip) total += strips[strip * here + column];
    sums[first + column] += total;
  });
}

struct RmsNormWeightGrad {
  const float* dy;
  const float* x;
  const float* rstd;
  float* dweight;
  int64_t rows;
  int64_t width;
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    add_columns(
        block, rows, width,
        [&](int64_t row, int64_t column) { return dy[row * width + column] * x[row * width + column] * rstd[row]; },
        dweight);
  }
};

struct LayerNormWeightGrad {
  const float* dy;
  const float* x;
  const float* mean;
  const float* rstd;
  float* dweight;
  float* dbias;
  int64_t rows;
  int64_t width;
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    add_columns(
        block, rows, width,
        [&](int64_t row, int64_t column) {
          return dy[row * width + column] * (x[row * width + column] - mean[row]) * rstd[row];
        },
        dweight);
    add_columns(
        block, rows, width, [&](int64_t row, int64_t column) { return dy[row * width + column]; }, dbias);
  }
};

// The body that turns heads with their position, a block a token.
inline constexpr int64_t kMaxRopePairs = 256;  // they travel in the launch's arguments

struct Turn {
  float* x;
  const int32_t* positions;
  int64_t heads;
  int64_t head_dim;
  int64_t first;
  int64_t pairs;
  int64_t step;   // from a pair to the next
  int64_t apart;  // the two of a pair
  double sign;
  double factor;
  double frequencies[kMaxRopePairs];

  // Angles are in fp64: far from the start of a text, fp32 would have lost them.
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    float* cosines = block.shared();  // [pairs]
    float* sines = cosines + pairs;   // [pairs]
    block.each(pairs, [&](int64_t i) {
      const double angle = sign * positions[block.index()] * frequencies[i];
      cosines[i] = static_cast<float>(factor * cos(angle));
      sines[i] = static_cast<float>(factor * sin(angle));
    });
    block.each(heads * pairs, [&](int64_t i) {
      const int64_t pair = i % pairs;
      float* low = x + (block.index() * heads + i / pairs) * head_dim + first + pair * step;
      float* high = low + apart;
      const float a = *low;
      const float b = *high;
      *low = a * cosines[pair] - b * sines[pair];
      *high = a * sines[pair] + b * cosines[pair];
    });
  }
};

// Bodies over a row of scores or logits, a block a row.

// Threads of a block that has the scores of one token: one warp where it is enough, because a warp needs no barrier.
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
