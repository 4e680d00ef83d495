// SPDX-License-Identifier: Apache-2.0
// Runs lanes on one thread: resumes whichever can go on, polls the requests of those that wait, fills the time in which
// all wait, keeps the deadlines.
#pragma once

#include <vector>

#include "comm/job/poll.hpp"
#include "comm/progress/deferred.hpp"
#include "comm/progress/task.hpp"

namespace cadre {

class Engine {
 public:
  explicit Engine(double deadline_seconds = kDefaultDeadlineSeconds) : deadline_seconds_(deadline_seconds) {}

  double deadline_seconds() const { return deadline_seconds_; }

  // A lane and the task it runs.
  struct Run {
    Lane* lane;
    Task<void>* task;
  };
  // Runs all to completion, interleaved at their waits; `filler` runs while all wait. They start in reverse order, and of
  // those that can go on the first does: it is to be the one with the longest way. The requests of lanes that wait are
  // polled while others compute, where the thread has a poller. If a task throws, the others are left where they wait and
  // the exception is thrown here. When every lane waits longer than the deadline, throws ErrorKind::timeout naming step,
  // layer, operation and the missing peers.
  void run(std::vector<Run> runs, DeferredQueue* filler = nullptr) const;
  void run(Lane& lane, Task<void>& task) const { run({{&lane, &task}}); }

 private:
  void wait_for_any(const std::vector<Run>& waiting, DeferredQueue* filler) const;

  double deadline_seconds_;
};

}  // namespace cadre
