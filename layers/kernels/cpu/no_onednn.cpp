// SPDX-License-Identifier: Apache-2.0
// Stands in for products_onednn.cpp and onednn_gemm.cpp in a build without oneDNN.
#include "comm/base/check.hpp"
#include "layers/kernels/cpu/onednn_gemm.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {

std::unique_ptr<WeightProducts> make_onednn_products(ThreadPool*) { return nullptr; }

bool has_onednn() { return false; }

bool multiplies_bf16() { return false; }

std::string onednn_version() { return ""; }

void onednn_gemm(const GemmShape&, const GemmOperand&, const GemmOperand&, float*, int64_t, float, float) {
  throw Error(ErrorKind::internal, "a product by oneDNN in a build without it");
}

}  // namespace cadre
