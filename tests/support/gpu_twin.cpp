// SPDX-License-Identifier: Apache-2.0
#include "tests/support/gpu_twin.hpp"

#include <memory>

#include "layers/kernels/gpu/kernels_inl.hpp"
#include "tests/support/gpu_twin_machine.hpp"

namespace cadre::test {

std::unique_ptr<Kernels> make_gpu_twin(TwinOrder order, TwinMemory memory, Precision precision, TwinFp8 fp8) {
  return make_gpu_kernels("gpu twin", std::make_shared<TwinMachine>(order, memory, fp8), precision);
}

}  // namespace cadre::test
