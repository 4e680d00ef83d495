// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/gpu/cuda.hpp"

namespace cadre {
namespace {

constexpr char kNotBuiltIn[] = "this build has no CUDA";

}  // namespace

CudaDevices find_cuda_devices() { return {{}, kNotBuiltIn}; }

std::unique_ptr<Kernels> make_cuda_kernels(int, Precision) {
  throw Error(ErrorKind::environment, kNotBuiltIn, "build the preset cuda, or use compute.device=cpu");
}

}  // namespace cadre
