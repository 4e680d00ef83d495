// SPDX-License-Identifier: Apache-2.0
// Scales of fp8 operands, with cuBLASLt 12.9 or newer.
#include "layers/kernels/gpu/cuda_products.cuh"
#include "layers/kernels/gpu/cuda_stream.cuh"

namespace cadre::gpu {
namespace {

void set_scales(cublasLtMatmulDesc_t desc, const LtOperand& operand, cublasLtMatmulDescAttributes_t mode_attribute,
                cublasLtMatmulDescAttributes_t pointer_attribute) {
  if (operand.scales == nullptr) return;
  const cublasLtMatmulMatrixScale_t mode = operand.scaling == Fp8Scaling::tiles
                                               ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F
                                               : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  CADRE_CUDA(cublasLtMatmulDescSetAttribute(desc, mode_attribute, &mode, sizeof mode));
  CADRE_CUDA(cublasLtMatmulDescSetAttribute(desc, pointer_attribute, &operand.scales, sizeof operand.scales));
}

}  // namespace

bool has_fp8_scales() { return cublasLtGetVersion() >= 120900; }

void set_scales(cublasLtMatmulDesc_t desc, const LtOperand& first, const LtOperand& second) {
  set_scales(desc, first, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
  set_scales(desc, second, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
}

}  // namespace cadre::gpu
