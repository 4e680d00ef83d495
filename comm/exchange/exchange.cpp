// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/exchange.hpp"

#include <algorithm>

namespace cadre {

Buffer BufferPool::take(size_t bytes) {
  // The smallest that is large enough, if it is not wastefully large.
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->bytes() >= bytes && (best == free_.end() || it->bytes() < best->bytes())) best = it;
  }
  if (best == free_.end()) {
    if (!free_.empty())
      free_.erase(std::max_element(free_.begin(), free_.end(),
                                   [](const Buffer& a, const Buffer& b) { return a.bytes() < b.bytes(); }));
    return Buffer(bytes + bytes / 8);  // room for the next steps' raggedness
  }
  Buffer buffer = std::move(*best);
  free_.erase(best);
  return buffer;
}

void BufferPool::give_back(Buffer buffer) {
  if (!buffer.empty()) free_.push_back(std::move(buffer));
}

// route.receive's counts hold, until learn_counts, what arrives: rows and slots of each peer in turn.
Request Exchange::announce(Route& route) {
  const auto num_ranks = static_cast<size_t>(group_.size());
  Buffer message(num_ranks * 2 * sizeof(int64_t));
  for (size_t peer = 0; peer < num_ranks; ++peer) {
    message.as<int64_t>()[2 * peer] = route.plan.row_counts[peer];
    message.as<int64_t>()[2 * peer + 1] = route.plan.slot_counts[peer];
  }
  route.receive.row_counts.assign(2 * num_ranks, -1);
  Request request = group_.all_to_all(std::span<const int64_t>(message.as<int64_t>(), 2 * num_ranks),
                                      std::span<int64_t>(route.receive.row_counts));
  request.own(std::move(message));
  return request;
}

void Exchange::learn_counts(Route& route) {
  ReceiveCounts& receive = route.receive;
  const size_t num_ranks = receive.row_counts.size() / 2;
  receive.slot_counts.resize(num_ranks);
  for (size_t peer = 0; peer < num_ranks; ++peer) {
    receive.slot_counts[peer] = receive.row_counts[2 * peer + 1];
    receive.row_counts[peer] = receive.row_counts[2 * peer];
  }
  receive.row_counts.resize(num_ranks);
  receive.row_offsets = offsets_of(receive.row_counts);
  receive.slot_offsets = offsets_of(receive.slot_counts);
}

}  // namespace cadre
