// SPDX-License-Identifier: Apache-2.0
// Bodies that round to fp8 E4M3 with one scale for a tile or block of values, and back: value = code x scale. The format
// is that of comm/wire/fp8.hpp.
#pragma once

#include <bit>
#include <cstdint>

#include "comm/wire/fp8.hpp"
#include "layers/kernels/gpu/elements.hpp"

namespace cadre::gpu {

CADRE_DEVICE inline int64_t extent(int64_t count, int64_t first, int64_t tile) {
  return count - first < tile ? count - first : tile;
}
// As bits, magnitudes are ordered like the numbers, and NaN is above all.
CADRE_DEVICE inline uint32_t magnitude_bits(float value) { return std::bit_cast<uint32_t>(value) & 0x7fffffffU; }

// Codes [rows, width], 0 beyond the values, which may be fewer. The scale of tile (r, c) lies at
// r scale_row + c scale_column.
struct Fp8Layout {
  int64_t rows;
  int64_t width;
  int64_t scale_row;
  int64_t scale_column;
};

// A matrix of floats [rows, width], and where its codes and scales go.
struct ToFp8 {
  const float* values;
  uint8_t* codes;
  float* scales;
  int64_t rows;
  int64_t width;
  Fp8Scale kind;
  Fp8Layout layout;
  CADRE_DEVICE float value(int64_t row, int64_t column) const {
    return row < rows && column < width ? values[row * width + column] : 0.0F;
  }
};

// A block a rectangle of `tile_rows` x `tile_columns` values; at an edge it is smaller. 1 x 128 are the tiles of
// activations, 128 x 1 those of a weight gradient, 128 x 128 the blocks of a weight.
struct QuantiseFp8 {
  ToFp8 of;
  int64_t tile_rows;
  int64_t tile_columns;

  int64_t num_blocks() const { return tiles_of(of.layout.rows, tile_rows) * tiles_of(of.layout.width, tile_columns); }
  CADRE_DEVICE int threads() const { return tile_rows * tile_columns <= kFp8TileChannels ? kWarp : kThreads; }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t across = tiles_of(of.layout.width, tile_columns);
    const int64_t first_row = block.index() / across * tile_rows;
    const int64_t first = block.index() % across * tile_columns;
    const int64_t here = extent(of.layout.width, first, tile_columns);
    const int64_t count = extent(of.layout.rows, first_row, tile_rows) * here;
    const bool one_row = tile_rows == 1;  // then nothing is divided
    const auto row = [&](int64_t i) { return one_row ? first_row : first_row + i / here; };
    const auto column = [&](int64_t i) { return one_row ? first + i : first + i % here; };
    const auto value = [&](int64_t i) { return of.value(row(i), column(i)); };
    const uint32_t amax = block.reduce(
        count, uint32_t{0}, [&](int64_t i) { return magnitude_bits(value(i)); }, Larger());
    const float scale = fp8_scale(std::bit_cast<float>(amax), of.kind);
    block.each(count, [&](int64_t i) { of.codes[row(i) * of.layout.width + column(i)] = to_fp8(value(i) / scale); });
    block.each(1, [&](int64_t) {
      of.scales[block.index() / across * of.layout.scale_row + block.index() % across * of.layout.scale_column] = scale;
    });
  }
};

// The codes of the transpose, whose layout it is: a block 128 columns of 128 values, with a scale for each column or one
// for all. Values are read and codes written along rows; in between they wait in shared memory.
struct QuantiseTransposedFp8 {
  ToFp8 of;
  bool one_scale;

  static constexpr int64_t kTile = kFp8TileChannels;
  static constexpr int64_t kPitch = kTile + 4;  // bytes of a column, so that columns begin in different banks
  static constexpr int64_t kSharedCodes = kTile * kPitch / 4;
  static constexpr int64_t kNumFloats = 2 * kTile + kSharedCodes;  // of shared memory

  int64_t num_blocks() const { return tiles_of(of.layout.rows, kTile) * tiles_of(of.layout.width, kTile); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t across = tiles_of(of.layout.width, kTile);
    const int64_t column = block.index() / across * kTile;  // of the values
    const int64_t row = block.index() % across * kTile;
    float* const scales = block.shared();
    find_scales(block, row, column, scales);
    auto* const codes = reinterpret_cast<uint8_t*>(scales + 2 * kTile);
    block.each(kTile * kTile, [&](int64_t i) {
      codes[i % kTile * kPitch + i / kTile] = to_fp8(of.value(row + i / kTile, column + i % kTile) / scales[i % kTile]);
    });
    const int64_t here = extent(of.layout.width, row, kTile);
    const int64_t columns = extent(of.layout.rows, column, kTile);
    block.each(columns * here, [&](int64_t i) {
      of.codes[(column + i / here) * of.layout.width + row + i % here] = codes[i / here * kPitch + i % here];
    });
    block.each(one_scale ? 1 : columns, [&](int64_t i) {
      const int64_t scale_row = one_scale ? column / kTile : column + i;
      of.scales[scale_row * of.layout.scale_row + row / kTile * of.layout.scale_column] = scales[i];
    });
  }

  // Into scales [kTile], of columns; the floats behind them are used too.
  template <class Block>
  CADRE_DEVICE void find_scales(Block& block, int64_t row, int64_t column, float* scales) const {
    block.each(2 * kTile, [&](int64_t i) {
      uint32_t amax = 0;
      for (int64_t r = i / kTile * (kTile / 2); r < (i / kTile + 1) * (kTile / 2); ++r) {
        amax = Larger()(amax, magnitude_bits(of.value(row + r, column + i % kTile)));
      }
      scales[i] = std::bit_cast<float>(amax);
    });
    const auto amax_of = [&](int64_t i) {
      return Larger()(magnitude_bits(scales[i]), magnitude_bits(scales[i + kTile]));
    };
    const uint32_t amax = one_scale ? block.reduce(kTile, uint32_t{0}, amax_of, Larger()) : 0;
    block.each(kTile,
               [&](int64_t i) { scales[i] = fp8_scale(std::bit_cast<float>(one_scale ? amax : amax_of(i)), of.kind); });
  }
};

// To floats, or to bf16, which holds a code times a power of two exactly. Codes [rows, width], scales
// [ceil(rows / tile_rows), ceil(width / tile_columns)].
template <class T>
struct DequantiseFp8 {
  const uint8_t* codes;
  const float* scales;
  T* values;
  int64_t width;
  int64_t tile_rows;
  int64_t tile_columns;
  CADRE_DEVICE void operator()(int64_t i) const {
    const int64_t across = tiles_of(width, tile_columns);
    const int64_t scale = i / width / tile_rows * across + i % width / tile_columns;
    store(values[i], from_fp8(codes[i]) * scales[scale]);
  }
};

// The first `width` of `from_width` columns, written or added.
struct TakeColumns {
  const float* from;
  float* to;
  int64_t from_width;
  int64_t width;
  bool add;
  CADRE_DEVICE void operator()(int64_t i) const {
    const float value = from[i / width * from_width + i % width];
    to[i] = add ? to[i] + value : value;
  }
};

}  // namespace cadre::gpu
