// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of this process: no launcher, quick tests, ThreadSanitizer sees every exchange.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/transport/transport.hpp"

namespace cadre {

// Runs `body` on `num_ranks` threads, each with the transport of its rank and a context of its own with the deadline of
// `job`, and joins them. When ranks throw, the others are released from their waits with an Error of their own, and the
// exception that came first is thrown again here. A rank that comes to no wait within its deadline is left behind
// (left_calls_behind of `job`) and named in the Error.
void run_local_ranks(const JobContext& job, int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body);
// In a job of its own.
void run_local_ranks(int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body);

// Set once a rank of the process failed: then the others throw where they wait.
using RankFailed = std::shared_ptr<std::atomic<bool>>;

// The transport of each rank of a new world. One job a rank.
std::vector<std::unique_ptr<Transport>> make_local_world(std::span<const std::unique_ptr<JobContext>> jobs,
                                                         RankFailed failed);

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
