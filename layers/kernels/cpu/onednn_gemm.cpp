// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/cpu/onednn_gemm.hpp"

#include <dnnl.h>
#include <omp.h>

#include "comm/base/check.hpp"

namespace cadre {

bool has_onednn() { return true; }

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

void onednn_gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
                 float alpha, float beta) {
  omp_set_num_threads(1);  // OpenMP keeps a number for each thread
  const dnnl_status_t status = dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', shape.m, shape.n, shape.k,
                                          alpha, a.data, a.stride, b.data, b.stride, beta, c, c_stride);
  if (status != dnnl_success) {
    throw Error(ErrorKind::internal, fmt::format("oneDNN refused a product of {} x {} x {}: status {}", shape.m,
                                                 shape.n, shape.k, static_cast<int>(status)));
  }
}

}  // namespace cadre
