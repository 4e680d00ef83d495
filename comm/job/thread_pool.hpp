// SPDX-License-Identifier: Apache-2.0
// The threads of one rank that compute: the rank's own and some more, which sleep between calls. A call is cut into parts by
// its shape alone, never by the number of threads, so that this number changes no bit.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "comm/job/poll.hpp"

namespace cadre {

class ThreadPool {
 public:
  // `poller`: of the rank's own thread; has a point behind each part that this thread computes.
  explicit ThreadPool(Poller* poller = nullptr) : poller_(poller) {}
  ~ThreadPool() { resize(1); }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The rank's own thread and threads - 1 others. Not during run().
  void resize(int threads);
  int size() const { return static_cast<int>(others_.size()) + 1; }

  // Calls part(i) once for each i of [0, parts), on any thread and in any order; returns when all are done, and throws what the
  // first of them threw. For the rank's own thread. A call inside a part computes its parts on the thread of that part.
  template <class Part>
  void run(int64_t parts, Part&& part) {
    using Body = std::remove_reference_t<Part>;
    run_parts({.call = [](void* body, int64_t i) { (*static_cast<Body*>(body))(i); },
               .body = const_cast<void*>(static_cast<const void*>(&part)),
               .parts = parts});
  }

 private:
  struct Work {
    void (*call)(void* body, int64_t part) = nullptr;
    void* body = nullptr;
    int64_t parts = 0;
  };

  void run_parts(const Work& work);
  void run_in_turn(const Work& work);
  void compute(const Work& work, bool polls);
  // Takes part in each run after the one with the number `seen`.
  void serve(uint64_t seen);

  Poller* poller_;
  std::vector<std::jthread> others_;
  std::atomic<std::thread::id> caller_;  // of the run under way; none: the default id
  std::atomic<int64_t> next_part_ = 0;
  std::atomic<uint64_t> num_runs_ = 0;  // moves on when there is work
  std::mutex mutex_;                    // of what follows
  std::condition_variable has_work_;
  std::condition_variable is_done_;
  Work work_;                           // parts = 0: none
  std::atomic<int> num_computing_ = 0;  // of the others; changes under the mutex
  int num_asleep_ = 0;
  bool ends_ = false;
  std::exception_ptr failure_;
};

}  // namespace cadre
