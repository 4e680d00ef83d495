// SPDX-License-Identifier: Apache-2.0
#include "comm/progress/engine.hpp"

#include <algorithm>
#include <thread>

#include "comm/base/trace.hpp"

namespace cadre {
namespace {

// True if the task can go on, or is over.
bool is_ready(const Engine::Run& run) { return run.task->done() || run.lane->suspension.awaited->test(); }

// Goes on with the lane from where it waits until it waits again.
void resume(Lane& lane) {
  const std::coroutine_handle<> handle = lane.suspension.resume;
  lane.suspension = {};
  trace_switch(lane.position);
  handle.resume();
}

void wait_for_any(const std::vector<Engine::Run>& waiting, double deadline_seconds) {
  if (std::ranges::any_of(waiting, is_ready)) return;
  TraceActivity activity(TraceKind::wait, {});
  const Deadline deadline(deadline_seconds);
  for (;;) {
    const auto ready = std::ranges::find_if(waiting, is_ready);
    if (ready != waiting.end()) return activity.relabel(ready->lane->position);
    for (const Engine::Run& run : waiting) deadline.check(*run.lane->suspension.awaited, run.lane->position);
    std::this_thread::yield();
  }
}

}  // namespace

void Engine::run(std::vector<Run> runs) const {
  for (const Run& run : runs) run.task->start(*run.lane);
  while (!runs.empty()) {
    wait_for_any(runs, deadline_seconds_);
    for (const Run& run : runs) {
      if (!run.task->done() && is_ready(run)) resume(*run.lane);
    }
    std::erase_if(runs, [](const Run& run) {
      if (run.task->done()) run.task->result();  // throws what the task threw
      return run.task->done();
    });
  }
}

}  // namespace cadre
