// SPDX-License-Identifier: Apache-2.0
// A stream, and how far the device has come with it.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <memory>
#include <source_location>
#include <string>

#include "comm/device/cuda_check.cuh"
#include "comm/job/request.hpp"

namespace cadre::gpu {

// The same check for cuBLASLt as for the CUDA runtime.
inline void check(cublasStatus_t status, const char* call,
                  std::source_location where = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorKind::environment, std::string(call) + ": " + cublasLtGetStatusString(status), {}, where);
}

class CudaStream {
 public:
  explicit CudaStream(int device);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t get() const { return stream_; }

  // A place in it. Errors of kernels come out where one is looked at.
  using Mark = std::shared_ptr<CUevent_st>;
  Mark mark();  // the end, as it is now
  bool is_past(const Mark& mark) const;
  // Waits with the deadline of all waits.
  void wait_for(const Mark& mark) const;
  Request launched();  // complete once the stream is past its end of now
  void wait() { wait_for(mark()); }

 private:
  struct Events;

  int device_;
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<Events> events_;  // that are not in use
};

}  // namespace cadre::gpu
