// SPDX-License-Identifier: Apache-2.0
// What one rank of a job has beside its groups: how long it waits, who watches its peers, its trace, its poller, its threads,
// and the operations that it gave up. Transports, requests and lanes refer to it; each thread rank has one of its own. Two jobs in
// one process share nothing of it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "comm/base/trace.hpp"
#include "comm/job/poll.hpp"
#include "comm/job/request.hpp"
#include "comm/job/thread_pool.hpp"
#include "comm/liveness/liveness.hpp"

namespace cadre {

inline constexpr double kDefaultDeadlineSeconds = 120.0;

class JobContext {
 public:
  explicit JobContext(double deadline_seconds = kDefaultDeadlineSeconds) : deadline_seconds_(deadline_seconds) {}
  // Frees abandoned operations, except those into which a peer or MPI may still write: these stay to the end of the process.
  ~JobContext();
  JobContext(const JobContext&) = delete;
  JobContext& operator=(const JobContext&) = delete;

  // Of waits that have no deadline of their own. Any thread.
  double deadline_seconds() const { return deadline_seconds_.load(std::memory_order_relaxed); }
  void set_deadline(double seconds) { deadline_seconds_.store(seconds, std::memory_order_relaxed); }

  Tracer& tracer() { return tracer_; }
  // For the rank's own thread.
  Poller& poller() { return poller_; }
  // The threads that compute; one until it is resized.
  ThreadPool& threads() { return threads_; }

  // nullptr: no rank is found dead, except by the deadline.
  Liveness* liveness() const { return liveness_.get(); }
  void set_liveness(std::unique_ptr<Liveness> liveness) { liveness_ = std::move(liveness); }

  // Whether blocking_call may use a thread; else the caller blocks, and has no deadline.
  bool has_threads_for_calls() const { return has_threads_for_calls_; }
  void set_threads_for_calls(bool allowed) { has_threads_for_calls_ = allowed; }
  // Whether a thread was left behind in a call that blocks: then the process cannot end in an orderly way, by MPI_Finalize and
  // destructors. Shared, because who ends the process may outlive the job.
  std::shared_ptr<std::atomic<bool>> left_calls_behind() const { return left_calls_behind_; }

  struct Abandoned {
    std::unique_ptr<PendingOperation> operation;
    std::vector<std::shared_ptr<const void>> owners;
  };
  // Any thread. Ends the process where there is no memory for it.
  void keep_abandoned(Abandoned abandoned) noexcept;

 private:
  std::atomic<double> deadline_seconds_;
  Tracer tracer_;
  std::unique_ptr<Liveness> liveness_;  // reads the tracer
  Poller poller_;
  ThreadPool threads_{&poller_};
  bool has_threads_for_calls_ = true;
  std::shared_ptr<std::atomic<bool>> left_calls_behind_ = std::make_shared<std::atomic<bool>>(false);
  std::mutex mutex_;  // of what follows
  std::vector<Abandoned> abandoned_;
};

}  // namespace cadre
