// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/mailbox.hpp"

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

void hand_over(Buffer bytes, Mailbox::Receive& receive) {
  receive.bytes = std::move(bytes);
  receive.arrived.store(true, std::memory_order_release);
}

}  // namespace

void Mailbox::put(int source, int tag, Buffer bytes) {
  const std::lock_guard lock(mutex_);
  for (auto waiting = receives_.begin(); waiting != receives_.end();) {
    const std::shared_ptr<Receive> receive = waiting->lock();
    if (receive == nullptr) {
      waiting = receives_.erase(waiting);
      continue;
    }
    if (receive->source == source && receive->tag == tag) {
      receives_.erase(waiting);
      return hand_over(std::move(bytes), *receive);
    }
    ++waiting;
  }
  messages_.push_back({source, tag, std::move(bytes)});
}

std::shared_ptr<Mailbox::Receive> Mailbox::receive(int source, int tag) {
  const auto receive = std::make_shared<Receive>();
  receive->source = source;
  receive->tag = tag;
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(
      messages_, [&](const Message& message) { return message.source == source && message.tag == tag; });
  if (found == messages_.end()) {
    receives_.push_back(receive);
  } else {
    hand_over(std::move(found->bytes), *receive);
    messages_.erase(found);
  }
  return receive;
}

}  // namespace cadre
