// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/gpu/cuda_stream.cuh"

#include <fmt/format.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "comm/job/wait.hpp"

namespace cadre::gpu {
namespace {

class Launched final : public PendingOperation {
 public:
  Launched(const CudaStream& stream, CudaStream::Mark mark, int device)
      : stream_(stream), mark_(std::move(mark)), device_(device) {}
  bool test() override { return stream_.is_past(mark_); }
  std::string missing() const override { return fmt::format("cuda:{} itself", device_); }

 private:
  const CudaStream& stream_;
  CudaStream::Mark mark_;
  int device_;
};

Request when_past(const CudaStream& stream, CudaStream::Mark mark, int device) {
  Request request("kernels", std::make_unique<Launched>(stream, std::move(mark), device));
  request.hide();  // no bytes travel
  return request;
}

}  // namespace

struct CudaStream::Events {
  ~Events() {
    for (cudaEvent_t event : free) std::ignore = cudaEventDestroy(event);
  }
  std::vector<cudaEvent_t> free;
};

CudaStream::CudaStream(int device) : device_(device), events_(std::make_shared<Events>()) {
  CADRE_CUDA(cudaSetDevice(device));
  CADRE_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaStream::~CudaStream() { std::ignore = cudaStreamDestroy(stream_); }

CudaStream::Mark CudaStream::mark() {
  CADRE_CUDA(cudaSetDevice(device_));
  cudaEvent_t event = nullptr;
  if (events_->free.empty()) {
    CADRE_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  } else {
    event = events_->free.back();
    events_->free.pop_back();
  }
  Mark mark(event, [events = events_](cudaEvent_t done) { events->free.push_back(done); });
  CADRE_CUDA(cudaEventRecord(event, stream_));
  return mark;
}

bool CudaStream::is_past(const Mark& mark) const {
  if (mark == nullptr) return true;
  const cudaError_t status = cudaEventQuery(mark.get());
  if (status == cudaErrorNotReady) return false;
  CADRE_CUDA(status);
  return true;
}

void CudaStream::wait_for(const Mark& mark) const {
  Request past = when_past(*this, mark, device_);
  cadre::wait(past);
}

Request CudaStream::launched() { return when_past(*this, mark(), device_); }

}  // namespace cadre::gpu
