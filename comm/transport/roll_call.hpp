// SPDX-License-Identifier: Apache-2.0
// Who lives and where each is, beside MPI. A thread of each process answers the others over sockets whatever the process
// is doing, so a rank that does not answer is stopped; one whose connections close without a farewell is dead, and all
// others know it within a quarter of a second.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "comm/base/trace.hpp"
#include "comm/transport/sockets.hpp"

namespace cadre {

class RollCall {
 public:
  // Collective over `world`, all processes of the job. One a process; from here on it is roll_call().
  explicit RollCall(Transport& world);
  // Says farewell first.
  ~RollCall();
  RollCall(const RollCall&) = delete;
  RollCall& operator=(const RollCall&) = delete;

  // Why there are no connections, then nobody is ever lost and nobody answers; else empty.
  const std::string& why_not() const { return why_not_; }

  // Whether ranks died that agree_on_survivors() has not heard of. Cheap.
  bool news() const { return num_lost_.load(std::memory_order_acquire) > num_known_.load(std::memory_order_relaxed); }
  // "rank 2 on n0 (pid 4711)" of each that died, ascending.
  std::string describe_lost() const;
  std::vector<int> lost() const;

  // Asks all ranks where they are, for a second at most, and says of those that hold the others up: which do not answer,
  // or else which compute, or else which have waited longest.
  std::string describe_late();

  // Of all that live: waits until they agree on who that is. The ranks, ascending; the same on all of them. Throws
  // ErrorKind::timeout after `seconds`.
  std::vector<int> agree_on_survivors(double seconds);

  // This process ends, and that is no death. `job_ends`: it takes the whole job with it, and the others are to think
  // nothing of each other's end.
  void leave(bool job_ends);
  // Ends every process of the job with `code`, where the launcher would not, and also those that are stopped.
  [[noreturn]] void end_job(int code);

 private:
  struct Message;
  struct State {
    bool left = false;  // said farewell
    bool lost = false;
    int64_t closed_ns = 0;  // 0: open
    std::vector<std::byte> unread;
    uint64_t asked = 0;  // the last question it answered, and what
    Whereabouts answer;
    double seconds_there = 0;
    std::string phase;
    uint64_t view = 0;  // what it last said of who is gone; 0: nothing
  };

  void listen(const std::stop_token& stop);
  int64_t publish_losses();
  void read_from(size_t rank);
  void take(size_t rank, const Message& message);
  void say(size_t rank, const Message& message);
  void say_to_all(const Message& message);
  [[noreturn]] void end_process(int code);
  bool is_there(size_t rank) const;  // another one, and neither lost nor gone
  uint64_t own_view() const;
  std::string name(size_t rank) const;

  int rank_;
  std::vector<Peer> peers_;
  std::string why_not_;
  mutable std::mutex mutex_;  // of what follows, and of writing to sockets
  std::condition_variable changed_;
  std::vector<State> states_;
  uint64_t question_ = 0;
  bool job_ends_ = false;
  std::atomic<int> num_lost_ = 0;
  std::atomic<int> num_known_ = 0;
  Socket wake_;  // an event that ends the thread's pause
  std::jthread thread_;
};

// That of the process, or nullptr.
RollCall* roll_call();

}  // namespace cadre
