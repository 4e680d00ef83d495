// SPDX-License-Identifier: Apache-2.0
// What a Machine (call.hpp) multiplies: shapes, operands, and how a library with column-major matrices sees them.
#pragma once

#include <cstdint>
#include <utility>

#include "layers/kernels/kernels.hpp"

namespace cadre::gpu {

// How matrices lie in elements: from one row to the next, 0 where there is no gap, and from one matrix to the next.
struct MatrixStrides {
  int64_t row = 0;
  int64_t matrix = 0;
};

// d [rows, columns] = op(a) op(b), or adds. Row-major; op(a) is [rows, inner] and op(b) [inner, columns], and a transposed
// operand is stored the other way round. d is f32, sums are fp32. `count` such products by one call, which touch nothing of
// each other's.
struct ProductShape {
  int64_t rows;
  int64_t columns;
  int64_t inner;
  bool a_transposed = false;
  bool b_transposed = false;
  Accumulate accumulate = Accumulate::no;
  int64_t count = 1;
  MatrixStrides a = {};
  MatrixStrides b = {};
  MatrixStrides d = {};
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
// op(first) op(second) with first = b and second = a.
struct ColumnMajorProduct {
  struct Stored {
    int64_t rows;
    int64_t columns;
    bool transposed;
    int64_t leading;  // elements from a column to the next
    int64_t step;     // from a matrix to the next
  };
  Stored first;
  Stored second;
  Stored result;
};

inline ColumnMajorProduct in_column_major(const ProductShape& shape) {
  const auto stored = [](int64_t rows, int64_t columns, bool transposed, const MatrixStrides& strides) {
    if (transposed) std::swap(rows, columns);
    return ColumnMajorProduct::Stored{columns, rows, transposed, strides.row == 0 ? columns : strides.row,
                                      strides.matrix};
  };
  return {stored(shape.inner, shape.columns, shape.b_transposed, shape.b),
          stored(shape.rows, shape.inner, shape.a_transposed, shape.a),
          stored(shape.rows, shape.columns, false, shape.d)};
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
