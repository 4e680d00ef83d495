// SPDX-License-Identifier: Apache-2.0
// Buffers of one memory that are used again, so that a step touches no fresh pages.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/base/buffer.hpp"

namespace cadre {

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

}  // namespace cadre
