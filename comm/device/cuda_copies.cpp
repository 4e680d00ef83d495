// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "comm/device/cuda_check.cuh"
#include "comm/device/staged.hpp"

namespace cadre {
namespace {

class PinnedMemory final : public Memory {
 public:
  std::byte* allocate(size_t bytes) override {
    void* data = nullptr;
    CADRE_CUDA(cudaMallocHost(&data, bytes));
    return static_cast<std::byte*>(data);
  }
  void release(std::byte* data) noexcept override { std::ignore = cudaFreeHost(data); }
};

// On a stream of its own: what computes is not waited for.
class CudaCopies final : public DeviceCopies {
 public:
  explicit CudaCopies(int device) : device_(device) {
    CADRE_CUDA(cudaSetDevice(device_));
    CADRE_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~CudaCopies() override { std::ignore = cudaStreamDestroy(stream_); }

  bool is_device_memory(const std::byte* data) const override {
    cudaPointerAttributes attributes = {};
    CADRE_CUDA(cudaPointerGetAttributes(&attributes, data));
    return attributes.type == cudaMemoryTypeDevice;
  }
  Memory& staging() override { return pinned_; }
  void to_host(std::byte* host, const std::byte* device, size_t bytes) override { copy(host, device, bytes); }
  void to_device(std::byte* device, const std::byte* host, size_t bytes) override { copy(device, host, bytes); }
  void finish() override { CADRE_CUDA(cudaStreamSynchronize(stream_)); }

 private:
  void copy(void* to, const void* from, size_t bytes) {
    CADRE_CUDA(cudaSetDevice(device_));
    CADRE_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
  }

  int device_;
  cudaStream_t stream_ = nullptr;
  PinnedMemory pinned_;
};

}  // namespace

std::shared_ptr<DeviceCopies> make_cuda_copies(int device) { return std::make_shared<CudaCopies>(device); }

}  // namespace cadre
