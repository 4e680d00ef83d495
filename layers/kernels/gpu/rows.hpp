// SPDX-License-Identifier: Apache-2.0
// Bodies that move and join rows: on the way to experts and back, of a table, and parts of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "layers/kernels/gpu/block.hpp"

namespace cadre::gpu {

// Rows of floats that an index picks; without one, in order.
struct PickedRows {
  const std::byte* base;
  int64_t stride;  // bytes
  const int32_t* index;
  CADRE_DEVICE const float* operator[](int64_t i) const {
    return reinterpret_cast<const float*>(base + (index == nullptr ? i : index[i]) * stride);
  }
  CADRE_DEVICE bool in_fours() const { return stride % 16 == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0; }
};

// A block a row.
struct GatherRows {
  PickedRows rows;
  const float* scale;  // or null
  float* dst;
  int64_t width;
  CADRE_DEVICE bool fours() const { return rows.in_fours() && in_fours(width, dst); }
  CADRE_DEVICE int threads() const { return threads_for_columns(width, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* from = rows[block.index()];
    float* to = dst + block.index() * width;
    each_column(block, width, fours(), [&]<class V>(std::type_identity<V>, int64_t i) {
      const auto scaled = [&](float value) { return scale[block.index()] * value; };
      at<V>(to, i) = scale == nullptr ? at<V>(from, i) : by_float(scaled, at<V>(from, i));
    });
  }
};

// A block a sum.
struct SumRows {
  PickedRows rows;
  const int32_t* offsets;
  const float* weight;  // or null
  float* dst;
  int64_t width;
  CADRE_DEVICE bool fours() const { return rows.in_fours() && in_fours(width, dst); }
  CADRE_DEVICE int threads() const { return threads_for_columns(width, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t first = offsets[block.index()];
    const int64_t end = offsets[block.index() + 1];
    float* to = dst + block.index() * width;
    each_column(block, width, fours(), [&]<class V>(std::type_identity<V>, int64_t i) {
      V total = {};
      for (int64_t j = first; j < end; ++j) {
        const float factor = weight == nullptr ? 1.0F : weight[j];
        total = by_float([&](float sum, float value) { return sum + factor * value; }, total, at<V>(rows[j], i));
      }
      at<V>(to, i) = total;
    });
  }
};

// A block a product. Columns are joined in fours however the rows lie, so that the bits do not depend on that.
struct DotRows {
  PickedRows a;
  PickedRows b;
  float* out;
  int64_t width;
  CADRE_DEVICE int threads() const { return threads_for_columns(width, true); }

  // The i-th four of a row; 0 behind its end.
  CADRE_DEVICE Four take(const float* row, bool fours, int64_t i) const {
    if (fours) return at<Four>(row, i);
    Four values = {};
    for (int64_t k = 0; k < 4 && 4 * i + k < width; ++k) values.at[k] = row[4 * i + k];
    return values;
  }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const bool left_fours = a.in_fours() && width % 4 == 0;
    const bool right_fours = b.in_fours() && width % 4 == 0;
    const float* left = a[block.index()];
    const float* right = b[block.index()];
    const float total = sum(block, (width + 3) / 4, [&](int64_t i) {
      const Four x = take(left, left_fours, i);
      const Four y = take(right, right_fours, i);
      return x.at[0] * y.at[0] + x.at[1] * y.at[1] + x.at[2] * y.at[2] + x.at[3] * y.at[3];
    });
    block.each(1, [&](int64_t) { out[block.index()] = total; });
  }
};

// Tokens by the row of the table that they had, in their order: those of the s-th row are tokens[starts[s]] and on.
struct TokensByRow {
  std::vector<int32_t> tokens;
  std::vector<int32_t> starts;  // one more than rows

  explicit TokensByRow(std::span<const int32_t> ids) {
    std::vector<uint64_t> keys;
    for (size_t t = 0; t < ids.size(); ++t) keys.push_back(static_cast<uint64_t>(ids[t]) << 32 | t);
    std::ranges::sort(keys);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (i == 0 || keys[i] >> 32 != keys[i - 1] >> 32) starts.push_back(static_cast<int32_t>(i));
      tokens.push_back(static_cast<int32_t>(keys[i]));
    }
    starts.push_back(static_cast<int32_t>(ids.size()));
  }
  int64_t num_rows() const { return static_cast<int64_t>(starts.size()) - 1; }
};

// A block a row of the table that a token had.
struct EmbeddingGrad {
  const int32_t* ids;
  const int32_t* tokens;
  const int32_t* starts;
  const float* dy;
  float* dtable;
  int64_t width;
  CADRE_DEVICE bool fours() const { return in_fours(width, dy, dtable); }
  CADRE_DEVICE int threads() const { return threads_for_columns(width, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t first = starts[block.index()];
    const int64_t end = starts[block.index() + 1];
    float* row = dtable + ids[tokens[first]] * width;
    each_column(block, width, fours(), [&]<class V>(std::type_identity<V>, int64_t i) {
      V total = at<V>(row, i);
      for (int64_t j = first; j < end; ++j) total = by_float(Plus(), total, at<V>(dy + tokens[j] * width, i));
      at<V>(row, i) = total;
    });
  }
};

// Columns of rows, from the first that counts.
template <class T>
struct ColumnsOf {
  T* start;
  int64_t stride;  // elements
  CADRE_DEVICE T* row(int64_t i) const { return start + i * stride; }
  CADRE_DEVICE bool in_fours() const { return stride % 4 == 0 && reinterpret_cast<uintptr_t>(start) % 16 == 0; }
};

// A block a row of dst, of which each row of src makes `repeats`.
struct CopyColumns {
  ColumnsOf<const float> src;
  ColumnsOf<float> dst;
  int64_t count;
  int64_t repeats;
  CADRE_DEVICE bool fours() const { return count % 4 == 0 && src.in_fours() && dst.in_fours(); }
  CADRE_DEVICE int threads() const { return threads_for_columns(count, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const float* from = src.row(block.index() / repeats);
    float* to = dst.row(block.index());
    each_column(block, count, fours(),
                [&]<class V>(std::type_identity<V>, int64_t i) { at<V>(to, i) = at<V>(from, i); });
  }
};

// A block a row of dst, the sum of `terms` of src.
struct SumColumns {
  ColumnsOf<const float> src;
  ColumnsOf<float> dst;
  int64_t count;
  int64_t terms;
  CADRE_DEVICE bool fours() const { return count % 4 == 0 && src.in_fours() && dst.in_fours(); }
  CADRE_DEVICE int threads() const { return threads_for_columns(count, fours()); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t first = block.index() * terms;
    float* to = dst.row(block.index());
    each_column(block, count, fours(), [&]<class V>(std::type_identity<V>, int64_t i) {
      V total = {};
      for (int64_t j = 0; j < terms; ++j) total = by_float(Plus(), total, at<V>(src.row(first + j), i));
      at<V>(to, i) = total;
    });
  }
};

}  // namespace cadre::gpu
