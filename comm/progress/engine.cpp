// SPDX-License-Identifier: Apache-2.0
#include "comm/progress/engine.hpp"

#include <algorithm>
#include <ranges>
#include <thread>

#include "comm/base/trace.hpp"

namespace cadre {
namespace {

// True if the task can go on, or is over.
bool is_ready(const Engine::Run& run) { return run.task->done() || run.lane->suspension.awaited->test(); }

// Goes on with the lane from where it waits until it waits again.
void resume(Lane& lane) {
  const std::coroutine_handle<> handle = lane.suspension.resume;
  lane.job().poller().unwatch(*lane.suspension.awaited);
  lane.suspension = {};
  lane.tracer().switch_to(lane.position);
  handle.resume();
}

// Whatever ends the engine's run, the pollers forget the requests of its lanes.
class Watched {
 public:
  explicit Watched(const std::vector<Engine::Run>& runs) : runs_(runs) {}
  ~Watched() {
    for (const Engine::Run& run : runs_) {
      if (run.lane->suspension.awaited != nullptr) run.lane->job().poller().unwatch(*run.lane->suspension.awaited);
    }
  }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

 private:
  const std::vector<Engine::Run>& runs_;
};

}  // namespace

void Engine::wait_for_any(const std::vector<Run>& waiting, DeferredQueue* filler) const {
  while (std::ranges::none_of(waiting, is_ready)) {
    JobContext& job = waiting.front().lane->job();
    if (filler != nullptr && filler->run_one(job.tracer())) continue;
    TraceActivity activity(job.tracer(), TraceKind::wait, {});
    const Deadline deadline(&job, deadline_seconds_);
    for (;;) {
      const auto ready = std::ranges::find_if(waiting, is_ready);
      if (ready != waiting.end()) return activity.relabel(ready->lane->position);
      for (const Run& run : waiting) deadline.check(*run.lane->suspension.awaited, run.lane->position);
      job.poller().move_others_on();
      std::this_thread::yield();
    }
  }
}

void Engine::run(std::vector<Run> runs, DeferredQueue* filler) const {
  const Watched watched(runs);
  const auto watch = [](const Run& run) {
    if (!run.task->done()) run.lane->job().poller().watch(*run.lane->suspension.awaited);
  };
  for (const Run& run : runs | std::views::reverse) {
    run.lane->tracer().switch_to(run.lane->position);
    run.task->start(*run.lane);
    watch(run);
  }
  while (!runs.empty()) {
    wait_for_any(runs, filler);
    const auto next = std::ranges::find_if(runs, is_ready);
    if (!next->task->done()) {
      resume(*next->lane);
      watch(*next);
    }
    if (next->task->done()) {
      next->task->result();  // throws what the task threw
      runs.erase(next);
    }
  }
}

}  // namespace cadre
