// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/blocking_call.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/transport/wait.hpp"

namespace cadre {
namespace {

constexpr std::chrono::milliseconds kLookAround{10};

std::atomic<bool> left_behind = false;
std::atomic<bool> threads_allowed = true;

struct Progress {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
};

}  // namespace

void allow_threads_for_blocking_calls(bool allowed) { threads_allowed.store(allowed); }

bool calls_were_left_behind() { return left_behind.load(); }
void note_call_left_behind() { left_behind.store(true); }

void blocking_call(const std::string& what, std::function<void()> call) {
  if (!threads_allowed.load()) return call();
  const Whereabouts here = whereabouts();
  const TraceActivity activity(TraceKind::wait, here.at);
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

  const Deadline deadline;
  std::unique_lock lock(progress->mutex);
  while (!progress->changed.wait_for(lock, kLookAround, [&] { return progress->done; })) {
    lock.unlock();
    try {
      deadline.check(
          here.at, [&] { return what; }, [] { return std::string("its ranks"); });
    } catch (...) {
      note_call_left_behind();
      throw;
    }
    lock.lock();
  }
  if (progress->error != nullptr) std::rethrow_exception(progress->error);
}

}  // namespace cadre
