// SPDX-License-Identifier: Apache-2.0
// Products with a weight in the precisions and libraries of the CPU back end, private to it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/wire/fp8.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/kernels/weight_products.hpp"

namespace cadre {

// A row-major single-precision product on strided views; the only caller of BLAS.
class Poller;

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
  Poller* poller = nullptr;  // of the calling thread: has a point between tiles
};

void poll_point(const GemmShape& shape);

// c[m,n] = alpha op(a)[m,k] op(b)[k,n] + beta c, c stored with c_stride. beta = 0 never reads c. Any extent may be 0.
void gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
          float alpha = 1.0F, float beta = 0.0F);

// The core type whose kernels OpenBLAS took: "Haswell", "SkylakeX", ...
std::string blas_core_name();

// Threads of one product. OpenBLAS keeps the number, one for the process.
int kernel_threads();

// Batch-invariant products: the bits of a row do not depend on the other rows of the call, which BLAS does not promise.
// Generation needs this: a text continues in the same way alone, in a batch, and with drafted tokens. A weight is read
// in place, once for a few rows.

// gemm with beta = 0 and `a` not transposed. An element of c has the same bits for any m and n.
void row_gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
              float alpha = 1.0F);
// gemm with beta = 0.
void blas_gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
               float alpha = 1.0F);
using Gemm = decltype(row_gemm);

// What y = x W^T is made of: row_gemm where rows are to be independent and the weight does not train.
inline Gemm* forward_gemm(const Parameter& weight, RowBits bits) {
  return bits == RowBits::independent && !weight.grad.defined() ? row_gemm : blas_gemm;
}

// All have points of `poller` between tiles, where there is one.

// OpenBLAS, and row_gemm where rows are to be independent.
std::unique_ptr<WeightProducts> make_fp32_products(RowBits bits, Poller* poller = nullptr);

// Operands in bf16, sums and results in fp32: oneDNN where this CPU multiplies bf16, else rounded_products.
std::unique_ptr<WeightProducts> make_bf16_products(RowBits bits, Poller* poller = nullptr);

// bf16 on any CPU: operands are rounded to bf16 and multiplied in fp32. A product of two bf16 is exact in
// fp32, so this differs from bf16 instructions in the order of additions only; it is no faster than fp32.
std::unique_ptr<WeightProducts> make_rounded_products(RowBits bits, Poller* poller = nullptr);

// Operands in fp8 E4M3 with scales by tile and block, sums in fp32 (see the file).
std::unique_ptr<WeightProducts> make_fp8_products(Fp8Scale kind, RowBits bits, Poller* poller = nullptr);

// bf16 by oneDNN; null where the build has no oneDNN or this CPU no such instructions.
std::unique_ptr<WeightProducts> make_onednn_products(Poller* poller = nullptr);

}  // namespace cadre
