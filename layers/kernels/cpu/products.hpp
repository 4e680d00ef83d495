// SPDX-License-Identifier: Apache-2.0
// Products with a weight in the precisions of the CPU back end, private to it.
#pragma once

#include <memory>

#include "comm/wire/fp8.hpp"
#include "layers/kernels/cpu/gemm.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/kernels/weight_products.hpp"

namespace cadre {

// What all products of a back end have in common.
struct ProductSettings {
  ThreadPool* threads;
  ProductChoice choice;
  RowBits bits;

  // y = x W^T is made of row_gemm where rows are to be independent.
  bool by_rows(const Parameter& weight) const {
    return bits == RowBits::everywhere || (bits == RowBits::independent && !weight.grad.defined());
  }
};

// Operands as they are, or, with `rounds`, rounded to bf16: a product of two bf16 is exact in fp32, so this differs from bf16
// instructions in the order of additions only, and is no faster than fp32.
std::unique_ptr<WeightProducts> make_fp32_products(const ProductSettings& settings, bool rounds = false);

// Operands in bf16, sums and results in fp32: oneDNN where this CPU multiplies bf16, else rounded operands.
std::unique_ptr<WeightProducts> make_bf16_products(const ProductSettings& settings);

// Operands in fp8 E4M3 with scales by tile and block, sums in fp32 (see the file).
std::unique_ptr<WeightProducts> make_fp8_products(Fp8Scale kind, const ProductSettings& settings);

// Weights that do not train, in a format other than fp32; operands and sums in fp32. Its gradients throw.
std::unique_ptr<WeightProducts> make_narrow_products(WeightFormat format, ThreadPool& threads);

// Fixed weights in bf16 or fp8, operands as they are or rounded to bf16, sums in fp32. Its weight gradient throws.
std::unique_ptr<WeightProducts> make_fixed_products(const ProductSettings& settings, bool rounds);

// bf16 by oneDNN; null where the build has no oneDNN or this CPU no such instructions.
std::unique_ptr<WeightProducts> make_onednn_products(ThreadPool* threads);

}  // namespace cadre
