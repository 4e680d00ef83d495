// SPDX-License-Identifier: Apache-2.0
#include "tests/support/gpu_twin.hpp"

#include <memory>

#include "layers/kernels/cpu_products.hpp"
#include "layers/kernels/gpu_kernels_attention_inl.hpp"
#include "layers/kernels/gpu_kernels_elements_inl.hpp"
#include "layers/kernels/gpu_kernels_rows_inl.hpp"
#include "tests/support/gpu_twin_machine.hpp"

namespace cadre::test {

std::unique_ptr<Kernels> make_gpu_twin(TwinOrder order, TwinMemory memory) {
  return std::make_unique<GpuKernels<TwinMachine>>("gpu twin", std::make_shared<TwinMachine>(order, memory),
                                                   make_fp32_products(PackedWeights::never));
}

}  // namespace cadre::test
