// SPDX-License-Identifier: Apache-2.0
// A Machine (call.hpp) that is a CUDA device: one stream, memory for tensors, scratch memory, launches. Calls
// launch and return; the stream is what keeps them in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/device/staged.hpp"
#include "layers/kernels/gpu/cuda_block.cuh"
#include "layers/kernels/gpu/cuda_stream.cuh"
#include "layers/kernels/gpu/multiply.hpp"
#include "layers/kernels/gpu/staging.hpp"

namespace cadre::gpu {

// mapped: of the host, which the device reaches over its bus, for the little that both use. device: its own, which the host
// does not reach; what does not fit there is refused.
enum class PlainKind { mapped, device };
class PlainMemory final : public Memory {
 public:
  PlainMemory(PlainKind kind, int device, CudaStream& stream, AddressRanges& ranges, Memory& pinned,
              Memory* results = nullptr)
      : kind_(kind), device_(device), stream_(stream), ranges_(ranges), pinned_(pinned), results_(results) {}
  std::byte* allocate(size_t bytes) override;
  void release(std::byte* data) noexcept override;  // waits for the stream, which may be using it
  void fill(std::byte* data, std::byte value, size_t bytes) override;
  void synchronize() override { stream_.wait(); }
  bool is_on_host() const override { return kind_ == PlainKind::mapped; }
  // In pieces, through pinned memory.
  void read(std::byte* to, const std::byte* from, size_t bytes) override;
  void write(std::byte* to, const std::byte* from, size_t bytes) override;
  Memory& for_results() override { return results_ == nullptr ? *this : *results_; }

 private:
  std::byte* piece();

  PlainKind kind_;
  int device_;
  CudaStream& stream_;
  AddressRanges& ranges_;
  Memory& pinned_;
  Memory* results_;
  Buffer piece_;
};

// Device memory for the length of a call; that of the next one may be the same, as the stream does one after the other.
// Grows to what the largest call needs, and frees nothing meanwhile (comm/base/buffer_pool.hpp says why).
class ScratchMemory {
 public:
  ScratchMemory() = default;
  ~ScratchMemory();
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

  // Takes back all that was handed out.
  void reset();
  std::byte* take(size_t bytes);  // aligned to 256 bytes

 private:
  struct Piece {
    std::byte* data;
    size_t bytes;
  };
  void add(size_t bytes);

  std::vector<Piece> pieces_;  // each as large as all before it, at least
  size_t piece_ = 0;           // that is handed out next, and from where on
  size_t offset_ = 0;
};

class LtProducts;

class CudaMachine {
 public:
  explicit CudaMachine(int device);
  ~CudaMachine();
  CudaMachine(const CudaMachine&) = delete;
  CudaMachine& operator=(const CudaMachine&) = delete;

  bool reaches(const void* data, size_t bytes) const { return ranges_.contain(data, bytes); }
  std::byte* scratch(size_t bytes) { return scratch_.take(bytes); }
  Memory& memory() { return memory_; }
  Memory& message_memory() { return memory_; }

  std::byte* staging(size_t bytes) { return staging_.take(stream_, bytes); }
  void copy_in(std::byte* device, const std::byte* staged, size_t bytes) {
    CADRE_CUDA(cudaMemcpyAsync(device, staged, bytes, cudaMemcpyDefault, stream_.get()));
  }
  void copy_out(void* host, const void* device, size_t bytes) {
    CADRE_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDefault, stream_.get()));
  }

  void copy_on_device(std::byte* to, const std::byte* from, size_t bytes) {
    CADRE_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_.get()));
  }
  std::unique_ptr<DeviceClock> make_clock() const;

  template <class Body>
  void elements(int64_t count, const Body& body) {
    run_elements<<<grid((count + kThreads - 1) / kThreads), kThreads, 0, stream_.get()>>>(count, body);
    CADRE_CUDA(cudaGetLastError());
  }
  template <class Body>
  void blocks(int64_t count, int64_t shared_floats, const Body& body) {
    const size_t shared_bytes = static_cast<size_t>(shared_floats) * sizeof(float);
    run_blocks<<<grid(count), num_threads(body), shared_bytes, stream_.get()>>>(body);
    CADRE_CUDA(cudaGetLastError());
  }
  bool multiplies_fp8() const;
  template <class Operand>
  void multiply(const ProductShape& shape, Operand a, Operand b, float* d);
  template <class Operand>
  void multiply_grouped(std::span<const Product<Operand>> products);

  // The device is the thread's from here on, because ranks may be threads.
  void begin() {
    CADRE_CUDA(cudaSetDevice(device_));
    scratch_.reset();
  }
  Request launched() { return stream_.launched(); }
  void wait() { stream_.wait(); }
  void* queue() const { return stream_.get(); }

 private:
  static unsigned grid(int64_t blocks);

  int device_;
  CudaStream stream_;
  std::shared_ptr<DeviceCopies> copies_;
  AddressRanges ranges_;  // of both memories
  PlainMemory results_{PlainKind::mapped, device_, stream_, ranges_, copies_->staging()};
  PlainMemory memory_{PlainKind::device, device_, stream_, ranges_, copies_->staging(), &results_};
  Staging<CudaStream::Mark> staging_{copies_->staging()};
  ScratchMemory scratch_;
  std::unique_ptr<LtProducts> products_;
};

}  // namespace cadre::gpu
