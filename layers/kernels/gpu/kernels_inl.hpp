// SPDX-License-Identifier: Apache-2.0
// All of GpuKernels, for the one file that instantiates it for a machine.
#pragma once

#include "layers/kernels/gpu/fp8_products.hpp"
#include "layers/kernels/gpu/kernels_attention_inl.hpp"
#include "layers/kernels/gpu/kernels_elements_inl.hpp"
#include "layers/kernels/gpu/kernels_rows_inl.hpp"
#include "layers/kernels/gpu/products.hpp"

namespace cadre {

template <class Machine>
std::unique_ptr<Kernels> make_gpu_kernels(std::string_view name, std::shared_ptr<Machine> machine,
                                          Precision precision) {
  using OnMachine = GpuKernels<Machine>;
  const auto products = [&](Precision of) -> std::unique_ptr<GroupedWeightProducts> {
    const bool in_fp8 = of == Precision::fp8 || of == Precision::fp8_ue8m0;
    if (!in_fp8 || !machine->multiplies_fp8()) return std::make_unique<GpuProducts<Machine>>(machine, of);
    return std::make_unique<GpuFp8Products<Machine>>(machine, of == Precision::fp8 ? Fp8Scale::fp32 : Fp8Scale::ue8m0);
  };
  auto fp32 = std::make_unique<OnMachine>(name, machine, products(Precision::fp32));
  if (precision == Precision::fp32) return fp32;
  const bool in_fp8 = precision != Precision::bf16;
  return std::make_unique<OnMachine>(name, machine, products(precision), std::move(fp32), in_fp8);
}

}  // namespace cadre
