// SPDX-License-Identifier: Apache-2.0
// The GPU back end with a host in the place of its device: the same kernel bodies, launches and copies, run in plain loops,
// later than they are called (gpu_twin_machine.hpp).
// What it cannot show is the launch itself, the barriers and the products of cuBLASLt.
#pragma once

#include <memory>

#include "layers/kernels/kernels.hpp"

namespace cadre::test {

// In which order blocks, and the elements of an `each`, are run. Both must give the same bits: an element that reads what
// another of the same `each` writes shows.
enum class TwinOrder { ascending, descending };
// Whether kernels may use the memory they are given, only copies of what they said they would, or, as on a device, that
// which comes from the memory() of the kernels and copies of the rest.
enum class TwinMemory { reached, copied, own };
// Whether the twin multiplies fp8 codes with scales, or is given what they round to.
enum class TwinFp8 { rounded, multiplied };

std::unique_ptr<Kernels> make_gpu_twin(TwinOrder order, TwinMemory memory, Precision precision = Precision::fp32,
                                       TwinFp8 fp8 = TwinFp8::rounded);

}  // namespace cadre::test
