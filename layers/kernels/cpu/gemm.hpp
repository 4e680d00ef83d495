// SPDX-License-Identifier: Apache-2.0
// Single-precision products of row-major matrices with strides, private to the CPU back end; the only callers of the libraries.
#pragma once

#include <cstdint>
#include <string>

#include "comm/base/buffer.hpp"
#include "comm/job/thread_pool.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre {

// op(A) where A is stored with `stride` elements from a row to the next; `transposed` reads it by columns.
struct GemmOperand {
  const float* data;
  int64_t stride;
  bool transposed = false;
};

struct GemmShape {
  int64_t m;
  int64_t n;
  int64_t k;
  ThreadPool* threads = nullptr;  // nullptr: the calling thread alone, without poll points
};

// c[m,n] = alpha op(a)[m,k] op(b)[k,n] + beta c, c stored with c_stride. beta = 0 never reads c. Any extent may be 0. The cut
// into parts, one for each thread in turn, depends on the shape alone.
void gemm(GemmLibrary library, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c,
          int64_t c_stride, float alpha = 1.0F, float beta = 0.0F);

// Batch-invariant products: the bits of a row do not depend on the other rows of the call, which libraries do not promise.
// Generation needs this: a text continues in the same way alone, in a batch, and with drafted tokens. A weight is read
// in place, once for a few rows. As gemm with beta = 0 and `a` not transposed; an element of c has the same bits for any m, n.
void row_gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
              float alpha = 1.0F);

inline constexpr int64_t kInt8TermsPerScale = 32;
inline constexpr int64_t kFp8TermsPerScale = 128;
// A code in E4M3 stands for so many times what its bits stand for in the same place of a half.
inline constexpr float kFp8OverHalf = 0x1p8F;

// A weight [rows, width] in a narrower format.
struct NarrowMatrix {
  WeightFormat format = WeightFormat::fp32;
  int64_t rows = 0;
  int64_t width = 0;
  Buffer codes;   // [rows, width]
  Buffer scales;  // [rows, ceil(width / terms_per_scale)], fp32; none in bf16, of fp8 times kFp8OverHalf

  NarrowMatrix() = default;
  NarrowMatrix(const float* values, int64_t rows, int64_t width, WeightFormat format, ThreadPool& threads);
  int64_t terms_per_scale() const { return format == WeightFormat::int8 ? kInt8TermsPerScale : kFp8TermsPerScale; }
  int64_t scales_per_row() const { return (width + terms_per_scale() - 1) / terms_per_scale(); }
};

// row_gemm with b transposed, on the values that b stands for: code x scale, rounded to fp32. Not of format fp32. Of int8 rows
// of a as Int8Rows.
void row_gemm(const GemmShape& shape, const GemmOperand& a, const NarrowMatrix& b, float* c, int64_t c_stride);

// Rows [num_rows, width] of a matrix as integers, for products with int8: value = factor x integer, in 16 bits. In scratch memory of
// this thread. A row with what is not finite gives NaN.
struct Int8Rows {
  Int8Rows(const GemmOperand& a, int64_t num_rows, int64_t width);
  int64_t padded_width;  // a multiple of kInt8TermsPerScale, zeros behind width
  const int16_t* rows;   // [num_rows, padded_width]
  const float* factors;  // [num_rows]
};

// On the calling thread, with columns [first_column, first_column + shape.n) of b in int8.
void row_gemm(const GemmShape& shape, const Int8Rows& a, const NarrowMatrix& b, int64_t first_column, float* c,
              int64_t c_stride);

// The core type whose kernels OpenBLAS took: "Haswell", "SkylakeX", ...
std::string blas_core_name();

// Products run on one thread of OpenBLAS and of OpenMP: ThreadPool cuts them. OpenBLAS keeps the number for the process.
void use_one_library_thread();

}  // namespace cadre
