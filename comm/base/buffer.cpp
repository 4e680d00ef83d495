// SPDX-License-Identifier: Apache-2.0
#include "comm/base/buffer.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  data_ = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
  if (data_ == nullptr) {
    bytes_ = 0;
    throw Error(ErrorKind::environment, fmt::format("cannot allocate {} bytes", bytes),
                "lower the batch, the sequence length or the model size, or use more ranks");
  }
  // Advice only: a kernel without huge pages serves small ones.
  if (alignment == kHugePage) static_cast<void>(madvise(data_, rounded, MADV_HUGEPAGE));
}

Buffer::~Buffer() { free_bytes(); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    free_bytes();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void Buffer::poison() {
  if (bytes_ > 0) std::memset(data_, 0xff, bytes_);
}

void Buffer::free_bytes() noexcept {
  if (data_ == nullptr) return;
  std::free(data_);
}

}  // namespace cadre
