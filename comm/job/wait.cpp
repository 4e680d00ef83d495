// SPDX-License-Identifier: Apache-2.0
#include "comm/job/wait.hpp"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

void Deadline::check(const Position& position, const std::function<std::string()>& what,
                     const std::function<std::string()>& missing) const {
  Liveness* const processes = job_ == nullptr ? nullptr : job_->liveness();
  if (processes != nullptr && processes->news()) [[unlikely]] {
    throw Error(
        ErrorKind::lost_rank,
        fmt::format("{}: {} died while this rank was in {}", position.describe(), processes->describe_lost(), what()),
        "its own last lines, or the kernel's log (out of memory?), say why; the last checkpoint stands");
  }
  if (Clock::now() < end_) [[likely]]
    return;
  const std::string late = processes == nullptr ? "" : processes->describe_late();
  throw Error(ErrorKind::timeout,
              fmt::format("{}: waited {:.0f} s in {} for {}{}{}", position.describe(), seconds_, what(), missing(),
                          late.empty() ? "" : "; ", late),
              "look at the log of the rank that is named; exchange.deadline_s sets the limit");
}

void wait(Request& request, std::optional<double> deadline_seconds, const Position& position) {
  if (request.test()) return;
  JobContext* const job = request.job();
  const bool is_given = position.step >= 0 || position.layer >= 0 || *position.phase != '\0';
  const Position at = is_given || job == nullptr ? position : job->tracer().whereabouts().at;
  std::optional<TraceActivity> activity;
  if (job != nullptr) activity.emplace(job->tracer(), TraceKind::wait, at);
  const Deadline deadline(
      job, deadline_seconds.value_or(job == nullptr ? kDefaultDeadlineSeconds : job->deadline_seconds()));
  while (!request.test()) {
    deadline.check(request, at);
    std::this_thread::yield();
  }
}

namespace {

constexpr std::chrono::milliseconds kLookAround{10};

struct Progress {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
};

}  // namespace

void blocking_call(JobContext& job, const std::string& what, std::function<void()> call) {
  if (!job.has_threads_for_calls()) return call();
  const Whereabouts here = job.tracer().whereabouts();
  const TraceActivity activity(job.tracer(), TraceKind::wait, here.at);
  const auto progress = std::make_shared<Progress>();
  std::thread([progress, call = std::move(call)]() mutable {
    std::exception_ptr error;
    try {
      call();
    } catch (...) {
      error = std::current_exception();
    }
    call = nullptr;
    const std::lock_guard lock(progress->mutex);
    progress->done = true;
    progress->error = error;
    progress->changed.notify_all();
  }).detach();

  const Deadline deadline(&job, job.deadline_seconds());
  std::unique_lock lock(progress->mutex);
  while (!progress->changed.wait_for(lock, kLookAround, [&] { return progress->done; })) {
    lock.unlock();
    try {
      deadline.check(
          here.at, [&] { return what; }, [] { return std::string("its ranks"); });
    } catch (...) {
      job.left_calls_behind()->store(true);
      throw;
    }
    lock.lock();
  }
  if (progress->error != nullptr) std::rethrow_exception(progress->error);
}

}  // namespace cadre
