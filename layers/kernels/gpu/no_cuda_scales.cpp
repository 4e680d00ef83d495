// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/gpu/cuda_products.cuh"

namespace cadre::gpu {

bool has_fp8_scales() { return false; }

void set_scales(cublasLtMatmulDesc_t, const LtOperand&, const LtOperand&) {}

}  // namespace cadre::gpu
