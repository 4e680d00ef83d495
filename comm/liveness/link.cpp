// SPDX-License-Identifier: Apache-2.0
#include "comm/liveness/link.hpp"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace cadre {
namespace {

constexpr size_t kMostUnsentBytes = size_t{1} << 20;

bool may_be_dropped(const Frame& frame) {
  return frame.kind == Frame::Kind::question || frame.kind == Frame::Kind::answer;
}

bool is_valid(const Frame& frame, int num_ranks) {
  return static_cast<uint32_t>(frame.kind) < Frame::kNumKinds && frame.origin >= 0 && frame.origin < num_ranks &&
         frame.subject >= 0 && frame.subject < num_ranks;
}

}  // namespace

void Link::queue(const Frame& frame) {
  if (!is_open() || (may_be_dropped(frame) && unsent_.size() - sent_ > kMostUnsentBytes)) return;
  const auto* bytes = reinterpret_cast<const std::byte*>(&frame);
  unsent_.insert(unsent_.end(), bytes, bytes + sizeof(frame));
}

void Link::flush() {
  while (has_unsent()) {
    const ssize_t count =
        send(socket_.get(), unsent_.data() + sent_, unsent_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    sent_ += static_cast<size_t>(count);
  }
  unsent_.erase(unsent_.begin(), unsent_.begin() + static_cast<std::ptrdiff_t>(sent_));
  sent_ = 0;
}

bool Link::receive(std::vector<Frame>& frames, int num_ranks) {
  std::array<std::byte, 16384> bytes;
  const ssize_t count = recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  if (count == 0) return false;
  unread_.insert(unread_.end(), bytes.begin(), bytes.begin() + count);
  size_t read = 0;
  for (; unread_.size() - read >= sizeof(Frame); read += sizeof(Frame)) {
    Frame frame;
    std::memcpy(&frame, unread_.data() + read, sizeof(Frame));
    if (!is_valid(frame, num_ranks)) return false;
    frames.push_back(frame);
  }
  unread_.erase(unread_.begin(), unread_.begin() + static_cast<std::ptrdiff_t>(read));
  return true;
}

}  // namespace cadre
