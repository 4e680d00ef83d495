// SPDX-License-Identifier: Apache-2.0
// The one door to BLAS: a row-major single-precision product on strided views.
#pragma once

#include <cstdint>
#include <string>

namespace cadre {

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

}  // namespace cadre
