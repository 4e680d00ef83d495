// SPDX-License-Identifier: Apache-2.0
// Products by cuBLASLt, fp32 sums and results.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>

#include "layers/kernels/gpu/multiply.hpp"

namespace cadre::gpu {

// An operand on the device: f32 (multiplied as such, without TF32), bf16, or codes with scales.
struct LtOperand {
  LtOperand(const float* of) : type(CUDA_R_32F), values(of) {}
  LtOperand(const bf16* of) : type(CUDA_R_16BF), values(of) {}
  LtOperand(const Fp8Matrix& of) : type(CUDA_R_8F_E4M3), values(of.codes), scales(of.scales), scaling(of.scaling) {}

  cudaDataType_t type;
  const void* values;
  const float* scales = nullptr;
  Fp8Scaling scaling = Fp8Scaling::tiles;
};

// Whether cuBLASLt, as it was compiled with and as it is, has scales by tile and block; and what tells it those of operands.
bool has_fp8_scales();
void set_scales(cublasLtMatmulDesc_t desc, const LtOperand& first, const LtOperand& second);

class LtProducts {
 public:
  // Whether it has fp8 operands with scales by tile and block on `device`.
  static bool multiply_fp8(int device);

  LtProducts();
  ~LtProducts();
  LtProducts(const LtProducts&) = delete;
  LtProducts& operator=(const LtProducts&) = delete;

  void multiply(const ProductShape& shape, const LtOperand& a, const LtOperand& b, float* d, cudaStream_t stream) {
    multiply(shape, a, b, d, stream, workspace_);
  }

  // Products that touch nothing of each other's, on streams beside `stream`, which waits for all of them: one alone leaves
  // much of a device idle. cublasGemmGroupedBatchedEx, which is one launch, has no f32 results of bf16.
  template <class Operand>
  void multiply_grouped(std::span<const Product<Operand>> products, cudaStream_t stream) {
    fork(stream);
    for (size_t i = 0; i < products.size(); ++i) {
      const Product<Operand>& product = products[i];
      const Side& side = sides_[i % sides_.size()];
      multiply(product.shape, product.a, product.b, product.d, side.stream, side.workspace);
    }
    join(stream);
  }

 private:
  struct Side {
    cudaStream_t stream = nullptr;
    cudaEvent_t done = nullptr;
    void* workspace = nullptr;
  };

  void multiply(const ProductShape& shape, const LtOperand& a, const LtOperand& b, float* d, cudaStream_t stream,
                void* workspace);
  // The sides begin where `stream` is now, and `stream` goes on when all of them are done.
  void fork(cudaStream_t stream);
  void join(cudaStream_t stream);

  // An algorithm is asked for once for each shape, type, scaling, alignment and strides: equal calls give equal bits.
  using Key = std::array<int64_t, 17>;

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  cudaEvent_t forked_ = nullptr;
  std::array<Side, 4> sides_;
  std::map<Key, cublasLtMatmulAlgo_t> chosen_;
};

}  // namespace cadre::gpu
