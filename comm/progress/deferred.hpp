// SPDX-License-Identifier: Apache-2.0
// Work whose result is not needed yet: weight gradients. It runs while all lanes wait, or when it is asked for, first in, first
// out, so that what adds to the same memory adds in the same order whenever it runs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "comm/base/trace.hpp"

namespace cadre {

class DeferredMerge;

class DeferredQueue {
 public:
  // What `run` refers to must live until it has run.
  void push(const Position& at, std::function<void()> run) { push({at, std::move(run), part_}); }
  // Work that no end of a part waits for: no other rank needs its result. It adds to memory of its own.
  void push_last(const Position& at, std::function<void()> run) { push({at, std::move(run), kLast}); }
  // What is pushed between hold() and stop_holding() is pushed by release(), as work of the part then: where it adds to the same
  // memory as a later part.
  void hold() { holds_ = true; }
  void stop_holding() { holds_ = false; }
  void release() {
    for (Item& item : std::exchange(held_, {})) {
      if (item.part != kLast) item.part = part_;
      push(std::move(item));
    }
  }
  // A pass pushes in parts, the same for all passes, one pass after the other; work of two parts never adds to the same memory.
  void begin_pass() { part_ = 0; }
  void end_part();
  // From now on the oldest of the earliest part runs, so that the early parts of all passes end soon; behind them what was pushed
  // last. run_first() is then for all.
  void run_early_parts_first() { early_parts_first_ = true; }

  // Runs the next one, as an activity in the trace; false when there is none.
  bool run_one(Tracer& tracer) {
    if (items_.empty()) return false;
    const auto next = early_parts_first_ ? std::ranges::min_element(items_, {}, &Item::part) : items_.begin();
    const Item item = std::move(*next);
    items_.erase(next);
    const TraceActivity activity(tracer, TraceKind::compute, item.at);
    item.run();
    return true;
  }

  // How many have been pushed so far, and runs all but those pushed after that count was taken.
  uint64_t num_pushed() const { return num_pushed_; }
  void run_first(uint64_t count, Tracer& tracer) {
    while (num_pushed_ - items_.size() < count) run_one(tracer);
  }

 private:
  friend DeferredMerge;
  struct Item {
    Position at;
    std::function<void()> run;
    size_t part;
  };
  static constexpr size_t kLast = std::numeric_limits<size_t>::max();

  void push(Item item) {
    if (holds_) {
      held_.push_back(std::move(item));
      return;
    }
    items_.push_back(std::move(item));
    ++num_pushed_;
  }

  std::deque<Item> items_;
  uint64_t num_pushed_ = 0;
  size_t part_ = 0;  // of what is pushed next
  bool early_parts_first_ = false;
  bool holds_ = false;
  std::deque<Item> held_;
  DeferredMerge* merge_ = nullptr;
  std::deque<size_t> parts_;  // ended and not handed on: items of each
  size_t in_parts_ = 0;       // items
};

// Work of passes that run side by side, each of the same parts. It is handed on to one queue part by part, and of each part
// pass by pass, whichever pass is ahead: what adds to the same memory adds in the order of passes.
class DeferredMerge {
 public:
  // `into` outlives this object.
  DeferredMerge(DeferredQueue& into, size_t num_passes) : into_(into), queues_(num_passes) {
    for (DeferredQueue& queue : queues_) queue.merge_ = this;
  }
  DeferredMerge(const DeferredMerge&) = delete;
  DeferredMerge& operator=(const DeferredMerge&) = delete;

  // Of one pass; it runs nothing itself.
  DeferredQueue& queue(size_t pass) { return queues_[pass]; }

 private:
  friend DeferredQueue;

  void hand_on() {
    while (!queues_[next_].parts_.empty()) {
      DeferredQueue& queue = queues_[next_];
      for (size_t i = 0; i < queue.parts_.front(); ++i) {
        into_.items_.push_back(std::move(queue.items_.front()));
        ++into_.num_pushed_;
        queue.items_.pop_front();
      }
      queue.in_parts_ -= queue.parts_.front();
      queue.parts_.pop_front();
      next_ = (next_ + 1) % queues_.size();
    }
  }

  DeferredQueue& into_;
  std::vector<DeferredQueue> queues_;
  size_t next_ = 0;  // pass
};

inline void DeferredQueue::end_part() {
  ++part_;
  if (merge_ == nullptr) return;
  parts_.push_back(items_.size() - in_parts_);
  in_parts_ = items_.size();
  merge_->hand_on();
}

}  // namespace cadre
