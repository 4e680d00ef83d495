// SPDX-License-Identifier: Apache-2.0
#include "comm/job/blocking_call.hpp"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/job/wait.hpp"

namespace cadre {
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
