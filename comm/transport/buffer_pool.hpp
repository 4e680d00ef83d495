// SPDX-License-Identifier: Apache-2.0
// Buffers of one memory that are used again.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"

namespace cadre {

class BufferPool {
 public:
  explicit BufferPool(Memory& memory) : memory_(&memory) {}

  // At least so large.
  Buffer take(size_t bytes) {
    const auto fits = [bytes](const Buffer& buffer) { return buffer.bytes() >= bytes; };
    const auto found = std::find_if(free_.begin(), free_.end(), fits);
    if (found == free_.end()) return Buffer(bytes, *memory_);
    Buffer buffer = std::move(*found);
    free_.erase(found);
    return buffer;
  }
  void give_back(Buffer buffer) { free_.push_back(std::move(buffer)); }

 private:
  Memory* memory_;
  std::vector<Buffer> free_;
};

}  // namespace cadre
