// SPDX-License-Identifier: Apache-2.0
// Products by cuBLASLt, fp32 sums and results.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <map>
#include <span>

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
                cudaStream_t stream) {
    multiply(shape, type, a, b, d, stream, workspace_);
  }

  // Products that touch nothing of each other's, on streams beside `stream`, which waits for all of them: one alone leaves
  // much of a device idle. cublasGemmGroupedBatchedEx, which is one launch, has no f32 results of bf16.
  template <class T>
  void multiply_grouped(std::span<const Product<T>> products, cudaDataType_t type, cudaStream_t stream) {
    fork(stream);
    for (size_t i = 0; i < products.size(); ++i) {
      const Product<T>& product = products[i];
      const Side& side = sides_[i % sides_.size()];
      multiply(product.shape, type, product.a, product.b, product.d, side.stream, side.workspace);
    }
    join(stream);
  }

 private:
  struct Side {
    cudaStream_t stream = nullptr;
    cudaEvent_t done = nullptr;
    void* workspace = nullptr;
  };

  void multiply(const ProductShape& shape, cudaDataType_t type, const void* a, const void* b, float* d,
                cudaStream_t stream, void* workspace);
  // The sides begin where `stream` is now, and `stream` goes on when all of them are done.
  void fork(cudaStream_t stream);
  void join(cudaStream_t stream);

  // An algorithm is asked for once for each shape, type and alignment: equal calls give equal bits.
  using Key = std::array<int64_t, 8>;

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  cudaEvent_t forked_ = nullptr;
  std::array<Side, 4> sides_;
  std::map<Key, cublasLtMatmulAlgo_t> chosen_;
};

}  // namespace cadre::gpu
