// SPDX-License-Identifier: Apache-2.0
// Which processes of the job live and where each one is, beside MPI. A thread of each process answers its neighbours of
// watch_neighbours() over TCP whatever the process does, so a rank that does not answer is stopped; one whose connection
// closes without a farewell is dead. News floods the graph: all processes know of a death within a second.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/base/trace.hpp"
#include "comm/liveness/handshake.hpp"

namespace cadre {

class Liveness {
 public:
  // Collective over all processes of the job. Answers the neighbours' questions with `tracer`'s whereabouts; it outlives this.
  Liveness(int rank, int num_ranks, const Tracer& tracer, const GatherBytes& gather);
  // Sends a farewell.
  ~Liveness();
  Liveness(const Liveness&) = delete;
  Liveness& operator=(const Liveness&) = delete;

  // Why there are no connections: then no rank is ever lost and none answers. Else empty.
  const std::string& failure() const { return failure_; }
  int num_connections() const { return static_cast<int>(links_.size()); }

  // Whether ranks died that agree_on_survivors() does not know of. Cheap.
  bool news() const { return num_lost_.load(std::memory_order_acquire) > num_known_.load(std::memory_order_relaxed); }
  // "rank 2 on n0 (pid 4711)" of each that died, ascending.
  std::string describe_lost() const;
  std::vector<int> lost() const;

  // Asks all ranks where they are, for a second at most, and describes those that hold the others up: the ranks that do
  // not answer, else those that compute, else all, which wait.
  std::string describe_late();

  // Collective over the ranks that live: waits until all of them have the same set. Returns it, ascending. Throws
  // ErrorKind::timeout after `seconds`, and ErrorKind::restart where the others take this rank for dead.
  std::vector<int> agree_on_survivors(double seconds);

  // This process ends, and that is no death. `job_ends`: so do all others, and their ends are no deaths either.
  void leave(bool job_ends);
  // Ends every process of the job with `code`, also those that are stopped, where the launcher would not.
  [[noreturn]] void end_job(int code);

 private:
  struct State {
    bool left = false;  // said farewell
    bool lost = false;
    int64_t closed_ns = 0;  // of the connection to a neighbour; 0: open
    uint64_t flooded = 0;   // the last flood of this rank that was applied
    uint64_t question = 0;  // its last question, and the neighbour that brought it
    size_t question_link = 0;
    uint64_t answered = 0;  // the last question of this process that it answered, and what
    Whereabouts answer;
    std::string phase;
    uint64_t view = 0;  // what it last said of who is gone; 0: nothing
  };

  void listen(const std::stop_token& stop);
  int64_t publish_losses();
  void mark_lost(size_t rank);
  void read_from(size_t link);
  void take(size_t link, const Frame& frame);
  void apply(size_t link, const Frame& frame);
  void route_answer(const Frame& frame);
  Frame make_answer(const Frame& question) const;
  void flood(Frame frame);
  void forward(const Frame& frame, size_t from);
  void flush_for(int64_t nanoseconds);
  [[noreturn]] void end_process(int code);
  bool is_there(size_t rank) const;  // another rank, and neither lost nor gone
  uint64_t own_view() const;
  std::string name(size_t rank) const;

  size_t rank_;
  const Tracer& tracer_;
  std::vector<Member> members_;
  std::string failure_;
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<Link> links_;
  std::vector<State> states_;
  uint64_t num_floods_ = 0;
  uint64_t question_ = 0;  // the last of this process
  int expelled_by_ = -1;   // the rank that takes this one for dead
  bool job_ends_ = false;
  std::atomic<int> num_lost_ = 0;
  std::atomic<int> num_known_ = 0;
  Socket wake_;  // an eventfd that ends the thread's pause
  std::jthread thread_;
};

}  // namespace cadre
