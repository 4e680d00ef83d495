// SPDX-License-Identifier: Apache-2.0
// All of GpuKernels, for the one file that instantiates it for a machine.
#pragma once

#include "layers/kernels/gpu_kernels_attention_inl.hpp"
#include "layers/kernels/gpu_kernels_elements_inl.hpp"
#include "layers/kernels/gpu_kernels_rows_inl.hpp"
#include "layers/kernels/gpu_products.hpp"

namespace cadre {

template <class Machine>
std::unique_ptr<Kernels> make_gpu_kernels(std::string_view name, std::shared_ptr<Machine> machine,
                                          Precision precision) {
  using OnMachine = GpuKernels<Machine>;
  const auto products = [&](Precision of) { return std::make_unique<GpuProducts<Machine>>(machine, of); };
  auto fp32 = std::make_unique<OnMachine>(name, machine, products(Precision::fp32));
  if (precision == Precision::fp32) return fp32;
  const bool in_fp8 = precision != Precision::bf16;
  return std::make_unique<OnMachine>(name, machine, products(precision), std::move(fp32), in_fp8);
}

}  // namespace cadre
