// SPDX-License-Identifier: Apache-2.0
// Host memory from which a device copies later, reused once the device is past the copies; and which addresses a device
// can read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <utility>

#include "comm/base/buffer.hpp"

namespace cadre::gpu {

// A Queue is what a device is told to do, in order:
//   Mark mark()             where it ends now; default constructible
//   bool is_past(Mark)      whether all before the mark is done
//   void wait_for(Mark)     until it is
template <class Mark>
class Staging {
 public:
  explicit Staging(Memory& memory, size_t piece_bytes = size_t{4} << 20, size_t max_pieces = 8)
      : memory_(&memory), piece_bytes_(piece_bytes), max_pieces_(max_pieces) {}

  // Untouched by others until all is done that `queue` is told before the next take(). Aligned to 256 bytes.
  template <class Queue>
  std::byte* take(Queue& queue, size_t bytes) {
    const size_t rounded = (bytes + 255) / 256 * 256;
    if (pieces_.empty() || used_ + rounded > pieces_.back().memory.bytes()) begin_piece(queue, rounded);
    std::byte* data = pieces_.back().memory.data() + used_;
    used_ += rounded;
    return data;
  }

 private:
  struct Piece {
    Buffer memory;
    Mark end = {};  // of what copies from it
  };

  template <class Queue>
  void begin_piece(Queue& queue, size_t bytes) {
    if (!pieces_.empty()) pieces_.back().end = queue.mark();
    used_ = 0;
    Piece next;
    if (pieces_.size() >= max_pieces_) queue.wait_for(pieces_.front().end);
    if (!pieces_.empty() && queue.is_past(pieces_.front().end)) {
      next = std::move(pieces_.front());
      pieces_.pop_front();
    }
    if (next.memory.bytes() < bytes || next.memory.empty()) {
      next.memory = Buffer(std::max(bytes, piece_bytes_), *memory_);
    }
    pieces_.push_back(std::move(next));
  }

  Memory* memory_;
  size_t piece_bytes_;
  size_t max_pieces_;
  std::deque<Piece> pieces_;  // the last is being filled, the first was filled first
  size_t used_ = 0;           // bytes of the last
};

// Which addresses a device reaches: the allocations that were made for it.
class AddressRanges {
 public:
  void add(const void* begin, size_t bytes) { ends_[address(begin)] = address(begin) + bytes; }
  void remove(const void* begin) { ends_.erase(address(begin)); }
  // Whether all bytes lie within one of them. No bytes lie anywhere.
  bool contain(const void* begin, size_t bytes) const {
    if (bytes == 0) return true;
    const auto next = ends_.upper_bound(address(begin));
    return next != ends_.begin() && address(begin) + bytes <= std::prev(next)->second;
  }

 private:
  static uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

  std::map<uintptr_t, uintptr_t> ends_;  // by begin
};

}  // namespace cadre::gpu
