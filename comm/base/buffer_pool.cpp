// SPDX-License-Identifier: Apache-2.0
#include "comm/base/buffer_pool.hpp"

#include <algorithm>
#include <utility>

namespace cadre {

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
