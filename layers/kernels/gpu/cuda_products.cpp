// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/gpu/cuda_products.cuh"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>

#include "layers/kernels/gpu/cuda_stream.cuh"

namespace cadre::gpu {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

// Opaque objects of cuBLASLt are plain memory; destroying one fails only for a bad handle.
struct Destroy {
  void operator()(cublasLtMatmulDescOpaque_t* desc) const { std::ignore = cublasLtMatmulDescDestroy(desc); }
  void operator()(cublasLtMatrixLayoutOpaque_t* layout) const { std::ignore = cublasLtMatrixLayoutDestroy(layout); }
  void operator()(cublasLtMatmulPreferenceOpaque_t* preference) const {
    std::ignore = cublasLtMatmulPreferenceDestroy(preference);
  }
};
template <class T>
using Owned = std::unique_ptr<T, Destroy>;

Owned<cublasLtMatmulDescOpaque_t> make_desc(const ColumnMajorProduct& product, const LtOperand& first,
                                            const LtOperand& second) {
  cublasLtMatmulDesc_t desc = nullptr;
  CADRE_CUDA(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Owned<cublasLtMatmulDescOpaque_t> owned(desc);
  const auto set = [&](cublasLtMatmulDescAttributes_t which, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    CADRE_CUDA(cublasLtMatmulDescSetAttribute(desc, which, &operation, sizeof operation));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, product.first.transposed);
  set(CUBLASLT_MATMUL_DESC_TRANSB, product.second.transposed);
  set_scales(desc, first, second);
  return owned;
}

Owned<cublasLtMatrixLayoutOpaque_t> make_layout(cudaDataType_t type, const ColumnMajorProduct::Stored& stored,
                                                int64_t count) {
  cublasLtMatrixLayout_t layout = nullptr;
  CADRE_CUDA(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(stored.rows),
                                        static_cast<uint64_t>(stored.columns), stored.leading));
  Owned<cublasLtMatrixLayoutOpaque_t> owned(layout);
  if (count == 1) return owned;
  const auto matrices = static_cast<int32_t>(count);
  CADRE_CUDA(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &matrices, sizeof matrices));
  CADRE_CUDA(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stored.step,
                                              sizeof stored.step));
  return owned;
}

// The largest power of two up to 256 that divides the address: rows of an expert may start anywhere.
uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256U;
  return static_cast<uint32_t>(address & ~(address - 1));
}

Owned<cublasLtMatmulPreferenceOpaque_t> make_preference(uint32_t a, uint32_t b, uint32_t d) {
  cublasLtMatmulPreference_t preference = nullptr;
  CADRE_CUDA(cublasLtMatmulPreferenceCreate(&preference));
  Owned<cublasLtMatmulPreferenceOpaque_t> owned(preference);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t which, auto value) {
    CADRE_CUDA(cublasLtMatmulPreferenceSetAttribute(preference, which, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d);
  return owned;
}

}  // namespace

LtProducts::LtProducts() {
  CADRE_CUDA(cublasLtCreate(&handle_));
  CADRE_CUDA(cudaMalloc(&workspace_, kWorkspaceBytes));
  CADRE_CUDA(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming));
  for (Side& side : sides_) {
    CADRE_CUDA(cudaStreamCreateWithFlags(&side.stream, cudaStreamNonBlocking));
    CADRE_CUDA(cudaEventCreateWithFlags(&side.done, cudaEventDisableTiming));
    CADRE_CUDA(cudaMalloc(&side.workspace, kWorkspaceBytes));
  }
}

LtProducts::~LtProducts() {
  for (const Side& side : sides_) {  // a destructor cannot report
    std::ignore = cudaFree(side.workspace);
    std::ignore = cudaEventDestroy(side.done);
    std::ignore = cudaStreamDestroy(side.stream);
  }
  std::ignore = cudaEventDestroy(forked_);
  std::ignore = cudaFree(workspace_);
  std::ignore = cublasLtDestroy(handle_);
}

void LtProducts::fork(cudaStream_t stream) {
  CADRE_CUDA(cudaEventRecord(forked_, stream));
  for (const Side& side : sides_) CADRE_CUDA(cudaStreamWaitEvent(side.stream, forked_));
}

void LtProducts::join(cudaStream_t stream) {
  for (const Side& side : sides_) {
    CADRE_CUDA(cudaEventRecord(side.done, side.stream));
    CADRE_CUDA(cudaStreamWaitEvent(stream, side.done));
  }
}

// Compute capability 9.0 alone has these scales.
bool LtProducts::multiply_fp8(int device) {
  int major = 0;
  int minor = 0;
  CADRE_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  CADRE_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return has_fp8_scales() && major == 9 && minor == 0;
}

void LtProducts::multiply(const ProductShape& shape, const LtOperand& a, const LtOperand& b, float* d,
                          cudaStream_t stream, void* workspace) {
  const ColumnMajorProduct product = in_column_major(shape);
  const auto desc = make_desc(product, b, a);
  const auto b_layout = make_layout(b.type, product.first, shape.count);
  const auto a_layout = make_layout(a.type, product.second, shape.count);
  const auto d_layout = make_layout(CUDA_R_32F, product.result, shape.count);

  const uint32_t aligned[] = {alignment_of(b.values), alignment_of(a.values), alignment_of(d)};
  const bool adds = shape.accumulate == Accumulate::yes;
  const Key key = {shape.rows,
                   shape.columns,
                   shape.inner,
                   shape.a_transposed * 4 + shape.b_transposed * 2 + adds,
                   a.type,
                   static_cast<int64_t>(a.scaling),
                   static_cast<int64_t>(b.scaling),
                   aligned[0],
                   aligned[1],
                   aligned[2],
                   shape.count,
                   product.first.leading,
                   product.first.step,
                   product.second.leading,
                   product.second.step,
                   product.result.leading,
                   product.result.step};
  auto found = chosen_.find(key);
  if (found == chosen_.end()) {
    const auto preference = make_preference(aligned[0], aligned[1], aligned[2]);
    cublasLtMatmulHeuristicResult_t result = {};
    int num_results = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, desc.get(), b_layout.get(), a_layout.get(), d_layout.get(),
                                       d_layout.get(), preference.get(), 1, &result, &num_results);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && num_results == 0)) {
      throw Error(ErrorKind::environment,
                  fmt::format("cuBLASLt has no product of {} x {} x {} values{}", shape.rows, shape.columns,
                              shape.inner, a.scales == nullptr ? "" : " in fp8"),
                  a.scales == nullptr ? "" : "use compute.precision=bf16");
    }
    CADRE_CUDA(status);
    found = chosen_.emplace(key, result.algo).first;
  }
  const float alpha = 1.0F;
  const float beta = adds ? 1.0F : 0.0F;
  CADRE_CUDA(cublasLtMatmul(handle_, desc.get(), &alpha, b.values, b_layout.get(), a.values, a_layout.get(), &beta, d,
                            d_layout.get(), d, d_layout.get(), &found->second, workspace, kWorkspaceBytes, stream));
}

}  // namespace cadre::gpu
