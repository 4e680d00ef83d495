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

// A weight [rows, width] in a narrower format.
struct NarrowMatrix {
  WeightFormat format = WeightFormat::fp32;
  int64_t rows = 0;
  int64_t width = 0;
  Buffer codes;   // [rows, width]
  Buffer scales;  // [rows, ceil(width / terms_per_scale)], fp32; none in bf16

  NarrowMatrix() = default;
  NarrowMatrix(const float* values, int64_t rows, int64_t width, WeightFormat format, ThreadPool& threads);
  int64_t terms_per_scale() const { return format == WeightFormat::int8 ? kInt8TermsPerScale : kFp8TermsPerScale; }
  int64_t scales_per_row() const { return (width + terms_per_scale() - 1) / terms_per_scale(); }
};

// row_gemm with b transposed, on the values that b stands for: code x scale, rounded to fp32. Not of format fp32.
void row_gemm(const GemmShape& shape, const GemmOperand& a, const NarrowMatrix& b, float* c, int64_t c_stride);

// The core type whose kernels OpenBLAS took: "Haswell", "SkylakeX", ...
std::string blas_core_name();

// Products run on one thread of OpenBLAS and of OpenMP: ThreadPool cuts them. OpenBLAS keeps the number for the process.
void use_one_library_thread();

}  // namespace cadre
