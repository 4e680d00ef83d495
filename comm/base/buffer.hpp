// SPDX-License-Identifier: Apache-2.0
// Owns bytes: every large allocation of Cadre is a Buffer.
#pragma once

#include <cstddef>
#include <span>

namespace cadre {

inline constexpr size_t kCacheLine = 64;

// `bytes` rounded up to whole cache lines.
constexpr size_t whole_cache_lines(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

// From now on no Buffer of this process gives its memory back: a peer may yet write into what it was lent.
void keep_all_buffers();

// Page-aligned when large (huge pages are asked for), else aligned to a cache line. Contents start undefined.
// Move-only.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool empty() const { return bytes_ == 0; }
  std::span<std::byte> span() { return {data_, bytes_}; }
  std::span<const std::byte> span() const { return {data_, bytes_}; }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  void free_bytes() noexcept;

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace cadre
