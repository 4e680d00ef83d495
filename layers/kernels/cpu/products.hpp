// SPDX-License-Identifier: Apache-2.0
// Products with a weight in the precisions and libraries of the CPU back end, private to it.
#pragma once

#include <memory>

#include "comm/wire/fp8.hpp"
#include "layers/kernels/weight_products.hpp"

namespace cadre {

// All have points of `poller` between tiles, where there is one.

// OpenBLAS, and row_gemm where rows are to be independent.
std::unique_ptr<WeightProducts> make_fp32_products(RowBits bits, Poller* poller = nullptr);

// Operands in bf16, sums and results in fp32: oneDNN where this CPU multiplies bf16, else rounded_products.
std::unique_ptr<WeightProducts> make_bf16_products(RowBits bits, Poller* poller = nullptr);

// bf16 on any CPU: operands are rounded to bf16 and multiplied in fp32. A product of two bf16 is exact in
// fp32, so this differs from bf16 instructions in the order of additions only; it is no faster than fp32.
std::unique_ptr<WeightProducts> make_rounded_products(RowBits bits, Poller* poller = nullptr);

// Operands in fp8 E4M3 with scales by tile and block, sums in fp32 (see the file).
std::unique_ptr<WeightProducts> make_fp8_products(Fp8Scale kind, RowBits bits, Poller* poller = nullptr);

// bf16 by oneDNN; null where the build has no oneDNN or this CPU no such instructions.
std::unique_ptr<WeightProducts> make_onednn_products(Poller* poller = nullptr);

}  // namespace cadre
