// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>

#include "comm/base/buffer.hpp"

namespace cadre {

// What arrives for one rank of a group of threads. Messages and receives of one (source, tag) find each other in the order
// in which they were posted, whichever of the two comes first.
class Mailbox {
 public:
  // A receive that was posted. When it has `arrived`, its bytes are there for the thread that posted it.
  struct Receive {
    int source = 0;
    int tag = 0;
    Buffer bytes;
    std::atomic<bool> arrived = false;
  };

  // Any thread: the message goes to the oldest receive that waits for it, or stays here.
  void put(int source, int tag, Buffer bytes);
  // The rank's own thread. A receive that was destroyed gets no message.
  std::shared_ptr<Receive> receive(int source, int tag);

 private:
  struct Message {
    int source;
    int tag;
    Buffer bytes;
  };

  std::mutex mutex_;
  std::deque<Message> messages_;                 // that no receive waited for, oldest first
  std::deque<std::weak_ptr<Receive>> receives_;  // that no message came for, oldest first
};

}  // namespace cadre
