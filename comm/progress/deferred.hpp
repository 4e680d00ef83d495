// SPDX-License-Identifier: Apache-2.0
// Work whose result is not needed yet: weight gradients. It runs while all lanes wait, or when it is asked for, and
// always first in, first out, so that what adds to the same memory adds in the same order whenever it runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>

#include "comm/base/trace.hpp"

namespace cadre {

class DeferredQueue {
 public:
  // What `run` refers to must live until it has run.
  void push(const Position& at, std::function<void()> run) {
    items_.push_back({at, std::move(run)});
    ++num_pushed_;
  }

  // Runs the oldest, as an activity in the trace; false when there is none.
  bool run_one(Tracer& tracer) {
    if (items_.empty()) return false;
    const Item item = std::move(items_.front());
    items_.pop_front();
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
  struct Item {
    Position at;
    std::function<void()> run;
  };

  std::deque<Item> items_;
  uint64_t num_pushed_ = 0;
};

}  // namespace cadre
