// SPDX-License-Identifier: Apache-2.0
// What a Machine (call.hpp) multiplies: shapes, operands, and how a library with column-major matrices sees them.
#pragma once

#include <cstdint>

#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

// d [rows, columns] = op(a) op(b), or adds. Row-major without gaps; op(a) is [rows, inner] and op(b) [inner, columns], and
// a transposed operand is stored the other way round. d is f32, sums are fp32.
struct ProductShape {
  int64_t rows;
  int64_t columns;
  int64_t inner;
  bool a_transposed = false;
  bool b_transposed = false;
  Accumulate accumulate = Accumulate::no;
};

// One product, with its operands on the device: const float*, const bf16* or Fp8Matrix.
template <class Operand>
struct Product {
  ProductShape shape;
  Operand a;
  Operand b;
  float* d;
};

// The same for a library whose matrices are column-major, where a row-major matrix is its own transpose: d is
// op(first) op(second) with first = b and second = a. `rows` of a stored matrix is also its leading dimension.
struct ColumnMajorProduct {
  struct Stored {
    int64_t rows;
    int64_t columns;
    bool transposed;
  };
  Stored first;
  Stored second;
  Stored result;
};

inline ColumnMajorProduct in_column_major(const ProductShape& shape) {
  const auto stored = [](int64_t rows, int64_t columns, bool transposed) {
    return transposed ? ColumnMajorProduct::Stored{rows, columns, true}
                      : ColumnMajorProduct::Stored{columns, rows, false};
  };
  return {stored(shape.inner, shape.columns, shape.b_transposed), stored(shape.rows, shape.inner, shape.a_transposed),
          stored(shape.rows, shape.columns, false)};
}

// Which values of an fp8 operand share a scale: 128 along the axis that is summed over, or, of at most one of both
// operands, 128 x 128.
enum class Fp8Scaling : uint8_t { tiles, blocks };

// An operand of fp8 codes [outer, inner], where inner is the axis that is summed over: a, and b transposed. A sum over 128
// code products is multiplied by both scales and added. Of ceil(inner / 128) scales a row or block, scale k of
//   tiles    of row r lies at k outer + r
//   blocks   of rows 128 r and on lies at r stride + k, where stride is ceil(inner / 128) rounded up to a multiple of 4
// inner, outer and the columns of d are multiples of kFp8Multiple, and codes, scales and d lie at multiples of 16 bytes.
// (cuBLAS 12.9, "128-element 1D and 128x128 2D block scaling" and "Tensor core usage", asks for 16 along inner and for
// 16 bytes of d, and says 4 along outer, where a kernel may want more.)
struct Fp8Matrix {
  const uint8_t* codes;
  const float* scales;
  Fp8Scaling scaling;
};
inline constexpr int64_t kFp8Multiple = 16;

}  // namespace cadre::gpu
