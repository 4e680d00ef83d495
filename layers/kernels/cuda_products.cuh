// SPDX-License-Identifier: Apache-2.0
// Products by cuBLASLt, fp32 sums and results.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <map>

#include "layers/kernels/gpu_products.hpp"

namespace cadre::gpu {

class LtProducts {
 public:
  LtProducts();
  ~LtProducts();
  LtProducts(const LtProducts&) = delete;
  LtProducts& operator=(const LtProducts&) = delete;

  // Operands in f32 (multiplied as such, without TF32) or bf16, on the device.
  void multiply(const ProductShape& shape, cudaDataType_t type, const void* a, const void* b, float* d,
                cudaStream_t stream);

 private:
  // An algorithm is asked for once for each shape, type and alignment: equal calls give equal bits.
  using Key = std::array<int64_t, 8>;

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, cublasLtMatmulAlgo_t> chosen_;
};

}  // namespace cadre::gpu
