// SPDX-License-Identifier: Apache-2.0
// A stream, and how far the device has come with it.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "comm/job/request.hpp"

namespace cadre::gpu {

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
