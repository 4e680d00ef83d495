// SPDX-License-Identifier: Apache-2.0
#include "comm/base/buffer.hpp"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "comm/base/out_of_memory.hpp"

namespace cadre {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

std::atomic<bool> keeps_all{false};

class HostMemory final : public Memory {
 public:
  std::byte* allocate(size_t bytes) override {
    const size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    auto* data = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
    if (data == nullptr) {
      throw OutOfMemory(fmt::format("cannot allocate {} bytes", bytes),
                        "lower the batch, the sequence length or the model size, or use more ranks");
    }
    // Advice only: a kernel without huge pages serves small ones.
    if (alignment == kHugePage) static_cast<void>(madvise(data, rounded, MADV_HUGEPAGE));
    return data;
  }
  void release(std::byte* data) noexcept override { std::free(data); }
};

void keep(std::byte* data) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::byte*>;
  const std::lock_guard lock(mutex);
  kept->push_back(data);
}

}  // namespace

void keep_all_buffers() { keeps_all.store(true); }
void stop_keeping_buffers() { keeps_all.store(false); }

void Memory::fill(std::byte* data, std::byte value, size_t bytes) {
  if (data == nullptr || bytes == 0) return;  // as in a dry run
  std::memset(data, std::to_integer<int>(value), bytes);
}

Memory& host_memory() {
  static HostMemory memory;
  return memory;
}

Buffer::Buffer(size_t bytes, Memory& memory, Lent lent)
    : memory_(&memory), data_(bytes == 0 ? nullptr : memory.allocate(bytes)), bytes_(bytes), lent_(lent) {}

Buffer::~Buffer() { free_bytes(); }

Buffer::Buffer(Buffer&& other) noexcept
    : memory_(other.memory_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      lent_(other.lent_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    free_bytes();
    memory_ = other.memory_;
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    lent_ = other.lent_;
  }
  return *this;
}

void Buffer::free_bytes() noexcept {
  if (data_ == nullptr) return;
  if (lent_ == Lent::maybe && keeps_all.load(std::memory_order_relaxed)) return keep(data_);
  memory_->release(data_);
}

}  // namespace cadre
