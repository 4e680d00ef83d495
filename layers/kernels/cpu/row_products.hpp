// SPDX-License-Identifier: Apache-2.0
// Products of which every row has the same bits whatever rows are multiplied with it, as BLAS does not promise: a text then
// goes on the same alone, among others, and with tokens that were drafted. A weight is read where it lies, once for a few
// rows.
#pragma once

#include "layers/kernels/cpu/gemm.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre {

// gemm of cpu_gemm.hpp, with beta = 0 and `a` not transposed. An element of c has the same bits for any m and n.
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

}  // namespace cadre
