// SPDX-License-Identifier: Apache-2.0
// The check of every call of the CUDA runtime: what failed, where, and what the library says.
#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <string>

#include "comm/base/buffer.hpp"

namespace cadre::gpu {

inline void check(cudaError_t status, const char* call, std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  const std::string text = std::string(call) + ": " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) {
    throw OutOfMemory(text, "lower train.batch, raise train.micro_batches, or use more devices", where);
  }
  throw Error(ErrorKind::environment, text, "CUDA_LAUNCH_BLOCKING=1 and compute-sanitizer show which kernel it was",
              where);
}

}  // namespace cadre::gpu

#define CADRE_CUDA(call) ::cadre::gpu::check(call, #call)
