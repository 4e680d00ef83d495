// SPDX-License-Identifier: Apache-2.0
// Bodies that move and join rows: on the way to experts and back, of a table, and parts of them.
#pragma once

#include <cstddef>

#include "layers/kernels/gpu_block.hpp"

namespace cadre::gpu {

// Rows of floats that an index picks; without one, in order.
struct PickedRows {
  const std::byte* base;
  int64_t stride;  // bytes
  const int32_t* index;
  CADRE_DEVICE const float* operator[](int64_t i) const {
    return reinterpret_cast<const float*>(base + (index == nullptr ? i : index[i]) * stride);
  }
};

struct GatherRows {
  PickedRows rows;
  const float* scale;  // or null
  float* dst;
  int64_t width;
  CADRE_DEVICE void operator()(int64_t i) const {
    const float value = rows[i / width][i % width];
    dst[i] = scale == nullptr ? value : scale[i / width] * value;
  }
};

struct SumRows {
  PickedRows rows;
  const int32_t* offsets;
  const float* weight;  // or null
  float* dst;
  int64_t width;
  CADRE_DEVICE void operator()(int64_t i) const {
    const int64_t r = i / width;
    float total = 0.0F;
    for (int64_t j = offsets[r]; j < offsets[r + 1]; ++j) {
      const float value = rows[j][i % width];
      total += weight == nullptr ? value : weight[j] * value;
    }
    dst[i] = total;
  }
};

// A block a product.
struct DotRows {
  PickedRows a;
  PickedRows b;
  float* out;
  int64_t width;
  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* left = a[block.index()];
    const float* right = b[block.index()];
    const float total = sum(block, width, [&](int64_t i) { return left[i] * right[i]; });
    block.each(1, [&](int64_t) { out[block.index()] = total; });
  }
};

struct Embedding {
  const int32_t* ids;
  const float* table;
  float* y;
  int64_t width;
  CADRE_DEVICE void operator()(int64_t i) const { y[i] = table[ids[i / width] * width + i % width]; }
};

// A thread adds one column of all tokens, so that a row of the table gets its tokens in order.
struct EmbeddingGrad {
  const int32_t* ids;
  const float* dy;
  float* dtable;
  int64_t tokens;
  int64_t width;
  CADRE_DEVICE void operator()(int64_t h) const {
    for (int64_t t = 0; t < tokens; ++t) dtable[ids[t] * width + h] += dy[t * width + h];
  }
};

// Columns of rows, from the first that counts.
template <class T>
struct ColumnsOf {
  T* start;
  int64_t stride;  // elements
  CADRE_DEVICE T& at(int64_t row, int64_t column) const { return start[row * stride + column]; }
};

struct CopyColumns {
  ColumnsOf<const float> src;
  ColumnsOf<float> dst;
  int64_t count;
  int64_t repeats;
  CADRE_DEVICE void operator()(int64_t i) const {
    dst.at(i / count, i % count) = src.at(i / count / repeats, i % count);
  }
};

struct SumColumns {
  ColumnsOf<const float> src;
  ColumnsOf<float> dst;
  int64_t count;
  int64_t terms;
  CADRE_DEVICE void operator()(int64_t i) const {
    float total = 0.0F;
    for (int64_t j = 0; j < terms; ++j) total += src.at(i / count * terms + j, i % count);
    dst.at(i / count, i % count) = total;
  }
};

// Rows first .. first + count of each head's `rows_of_head` rows of a weight with rows of `width`.
struct HeadRowsOf {
  const float* weight;
  int64_t num_heads;
  int64_t rows_of_head;
  int64_t first;
  int64_t count;
  int64_t width;
  CADRE_DEVICE const float* row(int64_t of_x, int64_t i) const {
    return weight + (of_x % num_heads * rows_of_head + first + i) * width;
  }
};

struct HeadLinear {
  const float* x;
  int64_t x_width;
  HeadRowsOf weight;
  float* y;
  int64_t y_width;
  CADRE_DEVICE void operator()(int64_t i) const {
    const int64_t r = i / weight.count;
    const float* row = weight.row(r, i % weight.count);
    float total = 0.0F;
    for (int64_t k = 0; k < weight.width; ++k) total += x[r * x_width + k] * row[k];
    y[r * y_width + i % weight.count] = total;
  }
};

struct HeadLinearTransposed {
  const float* x;
  int64_t x_width;
  HeadRowsOf weight;
  float* y;
  int64_t y_width;
  CADRE_DEVICE void operator()(int64_t i) const {
    const int64_t r = i / weight.width;
    const int64_t k = i % weight.width;
    float total = 0.0F;
    for (int64_t j = 0; j < weight.count; ++j) total += x[r * x_width + j] * weight.row(r, j)[k];
    y[r * y_width + k] = total;
  }
};

}  // namespace cadre::gpu
