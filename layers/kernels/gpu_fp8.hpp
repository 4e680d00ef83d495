// SPDX-License-Identifier: Apache-2.0
// Bodies that round to fp8 E4M3 with one scale for a tile or block of values, and back: value = code x scale. The format
// is that of comm/wire/fp8.hpp.
#pragma once

#include <bit>

#include "comm/wire/fp8.hpp"
#include "layers/kernels/gpu_elements.hpp"

namespace cadre::gpu {

// A block a rectangle of `tile_rows` x `tile_columns` values of a matrix [rows, width]; at an edge it is smaller. 1 x 128
// are the tiles of activations, 128 x 1 those of a weight gradient, 128 x 128 the blocks of a weight. scales
// [ceil(rows / tile_rows), ceil(width / tile_columns)].
struct QuantiseFp8 {
  const float* values;
  uint8_t* codes;
  float* scales;
  int64_t rows;
  int64_t width;
  int64_t tile_rows;
  int64_t tile_columns;
  Fp8Scale kind;

  CADRE_DEVICE static int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }
  CADRE_DEVICE static int64_t extent(int64_t count, int64_t first, int64_t tile) {
    return count - first < tile ? count - first : tile;
  }
  int64_t num_blocks() const { return tiles_of(rows, tile_rows) * tiles_of(width, tile_columns); }

  template <class Block>
  CADRE_DEVICE void operator()(Block& block) const {
    const int64_t across = tiles_of(width, tile_columns);
    const int64_t first_row = block.index() / across * tile_rows;
    const int64_t first = block.index() % across * tile_columns;
    const int64_t here = extent(width, first, tile_columns);
    const int64_t count = extent(rows, first_row, tile_rows) * here;
    const auto at = [&](int64_t i) { return (first_row + i / here) * width + first + i % here; };
    // As bits, magnitudes are ordered like the numbers, and NaN is above all.
    const uint32_t amax = block.reduce(
        count, uint32_t{0}, [&](int64_t i) { return std::bit_cast<uint32_t>(values[at(i)]) & 0x7fffffffU; }, Larger());
    const float scale = fp8_scale(std::bit_cast<float>(amax), kind);
    block.each(count, [&](int64_t i) { codes[at(i)] = to_fp8(values[at(i)] / scale); });
    block.each(1, [&](int64_t) { scales[block.index()] = scale; });
  }
};

// To floats, or to bf16, which holds a code times a power of two exactly.
template <class T>
struct DequantiseFp8 {
  const uint8_t* codes;
  const float* scales;
  T* values;
  int64_t width;
  int64_t tile_rows;
  int64_t tile_columns;
  CADRE_DEVICE void operator()(int64_t i) const {
    const int64_t across = QuantiseFp8::tiles_of(width, tile_columns);
    const int64_t scale = i / width / tile_rows * across + i % width / tile_columns;
    store(values[i], from_fp8(codes[i]) * scales[scale]);
  }
};

}  // namespace cadre::gpu
