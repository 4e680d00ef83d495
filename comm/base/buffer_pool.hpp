// SPDX-License-Identifier: Apache-2.0
// Buffers of one memory that are used again, so that a step touches no fresh pages.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/base/buffer.hpp"

namespace cadre {

class BufferPool {
 public:
  explicit BufferPool(Memory& memory = host_memory()) : memory_(&memory) {}

  // At least so large.
  Buffer take(size_t bytes);
  void give_back(Buffer buffer);

 private:
  Memory* memory_;
  std::vector<Buffer> free_;
};

}  // namespace cadre
