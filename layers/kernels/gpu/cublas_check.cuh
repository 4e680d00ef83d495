// SPDX-License-Identifier: Apache-2.0
// The same check for cuBLASLt as for the CUDA runtime.
#pragma once

#include <cublasLt.h>

#include <source_location>
#include <string>

#include "comm/device/cuda_check.cuh"

namespace cadre::gpu {

inline void check(cublasStatus_t status, const char* call,
                  std::source_location where = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorKind::environment, std::string(call) + ": " + cublasLtGetStatusString(status), {}, where);
}

}  // namespace cadre::gpu
