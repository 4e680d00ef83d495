// SPDX-License-Identifier: Apache-2.0
// Vector loops that round f32 to bf16 and to fp8, private to the CPU back end.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/base/dtype.hpp"
#include "comm/wire/fp8.hpp"

namespace cadre {

void round_to_bf16(const float* from, bf16* to, size_t count);

// The rounded values as f32.
void round_through_bf16(const float* from, float* to, size_t count);

// Vector loops over values in fp8 E4M3 with shared scales, private to the CPU back end. Values that were rounded are
// kept as floats: multiples of a code, value = code x scale. comm/wire/fp8.hpp has the format.

// [rows, width] in tiles of 1 x 128. codes [rows, width] as floats; scales [rows, ceil(width / 128)].
void round_tiles_to_fp8(const float* values, int64_t rows, int64_t width, Fp8Scale kind, float* codes, float* scales);

// [rows, width] in tiles of 128 x 1: scales [ceil(rows / 128), width].
void round_column_tiles_to_fp8(const float* values, int64_t rows, int64_t width, Fp8Scale kind, float* codes,
                               float* scales);

// [rows, width] in blocks of 128 x 128: scales [ceil(rows / 128), ceil(width / 128)]. At an edge a block is smaller.
void round_blocks_to_fp8(const float* values, int64_t rows, int64_t width, Fp8Scale kind, float* codes, float* scales);

// sums[i] += products[i] (row_scale column_scales[i / columns_per_scale]), for i in [0, count)
void add_scaled(const float* products, float row_scale, const float* column_scales, int64_t columns_per_scale,
                int64_t count, float* sums);

}  // namespace cadre
