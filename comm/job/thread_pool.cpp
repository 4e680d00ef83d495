// SPDX-License-Identifier: Apache-2.0
#include "comm/job/thread_pool.hpp"

#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// How often a thread without work looks for some before it sleeps, which takes about as long as to wake it: 20 us.
constexpr int kLooks = 400;

void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void ThreadPool::resize(int threads) {
  CADRE_CHECK(threads >= 1, fmt::format("threads = {}, needs at least 1", threads));
  if (threads == size()) return;
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
    ++num_runs_;
  }
  has_work_.notify_all();
  others_.clear();
  ends_ = false;
  for (int i = 1; i < threads; ++i) others_.emplace_back([this, seen = num_runs_.load()] { serve(seen); });
}

void ThreadPool::run_in_turn(const Work& work) {
  for (int64_t i = 0; i < work.parts; ++i) {
    work.call(work.body, i);
    if (poller_ != nullptr) poller_->point();
  }
}

void ThreadPool::run_parts(const Work& work) {
  const std::thread::id self = std::this_thread::get_id();
  const std::thread::id caller = caller_.load(std::memory_order_relaxed);
  if (caller != std::thread::id() && caller != self) {  // inside a part, on another thread
    for (int64_t i = 0; i < work.parts; ++i) work.call(work.body, i);
    return;
  }
  if (caller == self || others_.empty() || work.parts <= 1) return run_in_turn(work);
  caller_ = self;
  bool wakes = false;
  {
    const std::lock_guard lock(mutex_);
    work_ = work;
    next_part_ = 0;
    ++num_runs_;
    wakes = num_asleep_ > 0;
  }
  if (wakes) has_work_.notify_all();
  compute(work, /*polls=*/true);
  for (int i = 0; i < kLooks && num_computing_ > 0; ++i) pause_core();
  std::exception_ptr failure;
  {
    std::unique_lock lock(mutex_);
    work_ = {};
    is_done_.wait(lock, [this] { return num_computing_ == 0; });
    failure = std::exchange(failure_, nullptr);
  }
  caller_ = std::thread::id();
  if (failure) std::rethrow_exception(failure);
}

void ThreadPool::compute(const Work& work, bool polls) {
  for (int64_t i = next_part_++; i < work.parts; i = next_part_++) {
    try {
      work.call(work.body, i);
      if (polls && poller_ != nullptr) poller_->point();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_part_ = work.parts;
    }
  }
}

void ThreadPool::serve(uint64_t seen) {
  while (true) {
    for (int i = 0; i < kLooks && num_runs_ == seen; ++i) pause_core();
    Work work;
    {
      std::unique_lock lock(mutex_);
      ++num_asleep_;
      has_work_.wait(lock, [&] { return num_runs_ != seen; });
      --num_asleep_;
      seen = num_runs_;
      if (ends_) return;
      if (work_.parts == 0) continue;  // the run ended without this thread
      work = work_;
      ++num_computing_;
    }
    compute(work, /*polls=*/false);
    bool last = false;
    {
      const std::lock_guard lock(mutex_);
      last = --num_computing_ == 0;
    }
    if (last) is_done_.notify_one();
  }
}

}  // namespace cadre
