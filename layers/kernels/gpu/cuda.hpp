// SPDX-License-Identifier: Apache-2.0
// The back end on CUDA devices, as the rest of Cadre sees it. Every build has these functions; one without CUDA says so.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "layers/kernels/kernels.hpp"

namespace cadre {

struct CudaDevice {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0;     // compute capability
  int minor = 0;
  size_t bytes = 0;  // of memory
};

struct CudaDevices {
  std::vector<CudaDevice> list;
  std::string why_none;  // in one line; empty where there is a device
};

// Those that this process may use.
CudaDevices find_cuda_devices();

// f32 tensors, wherever they are; at hand are those in its memory(), which the host does not reach. Calls launch and return.
// Throws ErrorKind::environment where there is no such device, or a later call when it fails or is full.
std::unique_ptr<Kernels> make_cuda_kernels(int device, Precision precision);

}  // namespace cadre
