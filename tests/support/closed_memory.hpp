// SPDX-License-Identifier: Apache-2.0
// Memory of the GPU twin that the host cannot use, as it cannot use a device's: its pages are closed but while the twin works,
// and the host that reads or writes there ends with a segmentation fault. Copies go through other addresses of the same pages.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "comm/device/staged.hpp"

namespace cadre::test {

class ClosedMemory {
 public:
  ClosedMemory() : file_(memfd_create("gpu twin", 0)) {
    if (file_ < 0 || ftruncate(file_, kBytes) != 0) throw std::runtime_error("the twin gets no memory");
    begin_ = map(PROT_NONE);
    open_ = map(PROT_READ | PROT_WRITE);
    const std::scoped_lock lock(all().mutex);
    all().by_begin[begin_] = open_;
  }
  ~ClosedMemory() {
    {
      const std::scoped_lock lock(all().mutex);
      all().by_begin.erase(begin_);
    }
    munmap(begin_, kBytes);
    munmap(open_, kBytes);
    close(file_);
  }
  ClosedMemory(const ClosedMemory&) = delete;
  ClosedMemory& operator=(const ClosedMemory&) = delete;

  // Freed memory gives its pages back and no addresses.
  std::byte* allocate(size_t bytes) {
    std::byte* data = begin_ + used_;
    sizes_[data] = (bytes + kPage - 1) / kPage * kPage;
    used_ += sizes_[data];
    if (used_ > kBytes) throw std::runtime_error("the twin is full");
    return data;
  }
  void release(std::byte* data) noexcept {
    madvise(open_ + (data - begin_), sizes_[data], MADV_REMOVE);
    sizes_.erase(data);
  }

  // While it lives kernels run, and addresses are good.
  class Opening {
   public:
    explicit Opening(ClosedMemory* memory) : memory_(memory) { protect(PROT_READ | PROT_WRITE); }
    ~Opening() { protect(PROT_NONE); }
    Opening(const Opening&) = delete;
    Opening& operator=(const Opening&) = delete;

   private:
    void protect(int how) const {
      if (memory_ != nullptr && memory_->used_ > 0) mprotect(memory_->begin_, memory_->used_, how);
    }
    ClosedMemory* memory_;
  };

  // Where the host finds what is at an address of any twin; other addresses are their own.
  template <class Byte>
  static Byte* open(Byte* data) {
    const std::scoped_lock lock(all().mutex);
    const auto next = all().by_begin.upper_bound(const_cast<std::byte*>(data));
    if (next == all().by_begin.begin()) return data;
    const auto& [begin, open] = *std::prev(next);
    return data < begin + kBytes ? open + (data - begin) : data;
  }

 private:
  static constexpr size_t kBytes = size_t{16} << 30;  // of addresses
  static constexpr size_t kPage = 4096;

  struct All {
    std::mutex mutex;
    std::map<std::byte*, std::byte*> by_begin;
  };
  static All& all() {
    static auto& every = *new All;
    return every;
  }

  std::byte* map(int protection) const {
    void* data = mmap(nullptr, kBytes, protection, MAP_SHARED | MAP_NORESERVE, file_, 0);
    if (data == MAP_FAILED) throw std::runtime_error("the twin gets no addresses");
    return static_cast<std::byte*>(data);
  }

  int file_;
  std::byte* begin_;
  std::byte* open_;
  size_t used_ = 0;
  std::map<std::byte*, size_t> sizes_;
};

// The copies of any twin, for a staged transport.
class TwinCopies final : public DeviceCopies {
 public:
  bool is_device_memory(const std::byte* data) const override { return ClosedMemory::open(data) != data; }
  Memory& staging() override { return host_memory(); }
  void to_host(std::byte* host, const std::byte* device, size_t bytes) override { copy(host, device, bytes); }
  void to_device(std::byte* device, const std::byte* host, size_t bytes) override { copy(device, host, bytes); }
  void finish() override {}

 private:
  static void copy(std::byte* to, const std::byte* from, size_t bytes) {
    std::memcpy(ClosedMemory::open(to), ClosedMemory::open(from), bytes);
  }
};

// The same ranks, whose rows may lie in the memory of a twin.
inline std::unique_ptr<Transport> make_twin_transport(Transport& ranks) {
  return make_staged_transport(ranks.split(0, ranks.rank()), std::make_shared<TwinCopies>());
}

}  // namespace cadre::test
