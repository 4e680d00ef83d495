// SPDX-License-Identifier: Apache-2.0
#include "comm/base/buffer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace cadre {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

class HeapMemory final : public Memory {
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

}  // namespace

void Memory::fill(std::byte* data, std::byte value, size_t bytes) {
  if (data == nullptr || bytes == 0) return;  // as in a dry run
  std::memset(data, std::to_integer<int>(value), bytes);
}

void Memory::read(std::byte* to, const std::byte* from, size_t bytes) {
  synchronize();
  if (bytes > 0) std::memcpy(to, from, bytes);
}

void Memory::write(std::byte* to, const std::byte* from, size_t bytes) { Memory::read(to, from, bytes); }

Memory& host_memory() {
  static auto& memory = *new HeapMemory;  // has no state; it outlives every buffer
  return memory;
}

Buffer::Buffer(size_t bytes, Memory& memory) : bytes_(bytes) {
  if (bytes == 0) return;
  data_ = std::shared_ptr<std::byte>(memory.allocate(bytes), [&memory](std::byte* data) { memory.release(data); });
}

Buffer BufferPool::take(size_t bytes) {
  // The smallest that is large enough; if none is, a larger one, in place of the largest where that may be freed.
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->bytes() >= bytes && (best == free_.end() || it->bytes() < best->bytes())) best = it;
  }
  if (best == free_.end()) {
    if (outgrown_ == Outgrown::kept) return Buffer(bytes + bytes / 2, *memory_);  // so that few are outgrown
    if (!free_.empty())
      free_.erase(std::max_element(free_.begin(), free_.end(),
                                   [](const Buffer& a, const Buffer& b) { return a.bytes() < b.bytes(); }));
    return Buffer(bytes + bytes / 8, *memory_);  // room for the next steps' raggedness
  }
  Buffer buffer = std::move(*best);
  free_.erase(best);
  return buffer;
}

void BufferPool::give_back(Buffer buffer) {
  if (!buffer.empty()) free_.push_back(std::move(buffer));
}

}  // namespace cadre
