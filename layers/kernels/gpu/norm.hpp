// SPDX-License-Identifier: Apache-2.0
// Bodies that normalise rows, a block a row, and their weight gradients, a block a strip of columns.
#pragma once

#include <cmath>

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

}  // namespace cadre::gpu
