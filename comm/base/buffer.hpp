// SPDX-License-Identifier: Apache-2.0
// Owns bytes: every large allocation of Cadre is a Buffer.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"

namespace cadre {

inline constexpr size_t kCacheLine = 64;

// `bytes` rounded up to whole cache lines.
constexpr size_t whole_cache_lines(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

// Where the bytes of a Buffer come from. It outlives its Buffers.
class Memory {
 public:
  virtual ~Memory() = default;
  // `bytes` > 0, aligned to a cache line at least, contents undefined. Throws ErrorKind::environment when there are not
  // that many.
  virtual std::byte* allocate(size_t bytes) = 0;
  virtual void release(std::byte* data) noexcept = 0;

  // fill() enqueues on the device, behind the operations before it. When synchronize() returns, all are complete. On host
  // memory fill() is immediate.
  virtual void fill(std::byte* data, std::byte value, size_t bytes);
  virtual void synchronize() {}

  // Whether the host may use bytes of this memory, after synchronize(). What it may not use it copies: read() to its own
  // memory, write() from there, behind the operations before them and complete when they return.
  virtual bool is_on_host() const { return true; }
  virtual void read(std::byte* to, const std::byte* from, size_t bytes);
  virtual void write(std::byte* to, const std::byte* from, size_t bytes);

  // Memory of the same device that the host may use too, for little: kernels reach it over a bus. Where there is but one
  // memory, this one.
  virtual Memory& for_results() { return *this; }
};

// Page-aligned when large (huge pages are asked for).
Memory& host_memory();

// Contents start undefined. Move-only.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes, Memory& memory = host_memory());
  Buffer(Buffer&& other) noexcept : data_(std::move(other.data_)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    data_ = std::move(other.data_);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }
  bool empty() const { return bytes_ == 0; }
  std::span<std::byte> span() { return {data(), bytes_}; }
  std::span<const std::byte> span() const { return {data(), bytes_}; }
  // For an operation under way: the bytes live as long as this Buffer or what is returned.
  std::shared_ptr<const void> share() const { return data_; }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data());
  }

 private:
  std::shared_ptr<std::byte> data_;
  size_t bytes_ = 0;
};

// Buffers of one memory that are used again, so that a step touches no fresh pages.

// Giving back memory of a device, or memory that is pinned for one, waits for all that the device is at, and that may wait for
// a rank which waits for this one: pools of such memory keep what they have outgrown.
enum class Outgrown : bool { freed, kept };

class BufferPool {
 public:
  explicit BufferPool(Memory& memory = host_memory(), Outgrown outgrown = Outgrown::freed)
      : memory_(&memory), outgrown_(outgrown) {}

  // At least so large.
  Buffer take(size_t bytes);
  void give_back(Buffer buffer);

 private:
  Memory* memory_;
  Outgrown outgrown_;
  std::vector<Buffer> free_;
};

// Memory that a host or a device does not have.

// ErrorKind::environment.
class OutOfMemory final : public Error {
 public:
  explicit OutOfMemory(const std::string& text, const std::string& hint,
                       std::source_location where = std::source_location::current())
      : Error(ErrorKind::environment, text, hint, where), where_(where) {}

  // The same, with what the rank was at and how many tokens the micro-batch there has.
  Error at(const Position& position, int64_t num_tokens) const {
    return {kind(), fmt::format("{}, {} tokens: {}", position.describe(), num_tokens, text()), hint(), where_};
  }

 private:
  std::source_location where_;
};

}  // namespace cadre
