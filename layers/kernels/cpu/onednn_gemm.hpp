// SPDX-License-Identifier: Apache-2.0
// oneDNN's single-precision product, private to gemm.cpp; a build without oneDNN has none.
#pragma once

#include <cstdint>
#include <string>

#include "layers/kernels/cpu/gemm.hpp"

namespace cadre {

std::string onednn_version();  // "2.6.3"; empty where there is none
// As gemm, no extent 0, on the calling thread. Throws where there is no oneDNN.
void onednn_gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
                 float alpha, float beta);

}  // namespace cadre
