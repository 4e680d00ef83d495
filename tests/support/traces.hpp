// SPDX-License-Identifier: Apache-2.0
// Traces by hand, in microseconds, for tests of what is worked out from them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre::test {

inline TracedRun traced_run(int pipeline, int data, int expert, const std::string& schedule = "1f1b",
                            int num_micro_batches = 1) {
  TracedRun run;
  run.cadre_version = "1.2.3";
  run.mpi = "threads";
  run.num_ranks = pipeline * data;
  run.num_hosts = 1;
  run.pipeline = pipeline;
  run.data = data;
  run.expert = expert;
  run.schedule = schedule;
  run.num_micro_batches = num_micro_batches;
  run.exchange = "flat";
  run.threads = 1;
  run.seed = 42;
  run.config_hash = "00ff";
  return run;
}

inline RankTrace empty_trace(const TracedRun& run, int rank) {
  RankTrace trace;
  trace.run = run;
  trace.rank = rank;
  trace.host = "host" + std::to_string(rank);
  return trace;
}

struct At {
  int layer = -1;
  int micro_batch = -1;
  int64_t bytes = 0;
  int64_t step = 7;
};

inline void add(RankTrace& trace, TraceKind kind, const std::string& phase, int64_t begin_us, int64_t end_us,
                const At& at = {}) {
  trace.events.push_back({kind, phase, at.step, at.micro_batch, at.layer, begin_us * 1000, end_us * 1000, at.bytes});
}

// Step 7 of two ranks that exchange rows of layer 1, from 0 to 1000 us:
//
//   rank 0   norm 0-200, shared experts -300, wait -500, experts -800, wait -900, optimizer -950, wait for nothing -1000
//            in flight: dispatch 200-500, metrics 600-700, combine 650-900
//   rank 1   norm 0-350, wait -520, experts -850, wait -900, optimizer -1000
//            in flight: dispatch 350-520, metrics 610-690, combine 850-900
inline std::vector<RankTrace> exchange_traces() {
  const TracedRun run = traced_run(1, 2, 2);
  RankTrace first = empty_trace(run, 0);
  using enum TraceKind;
  const At layer = {.layer = 1, .micro_batch = 0};
  const auto sends = [&](int64_t bytes) { return At{.layer = 1, .micro_batch = 0, .bytes = bytes}; };
  add(first, compute, "norm", 0, 200, layer);
  add(first, compute, "shared experts", 200, 300, layer);
  add(first, flight, "dispatch", 200, 500, sends(4000));
  add(first, wait, "dispatch", 300, 500, layer);
  add(first, flight, "metrics", 600, 700, {.bytes = 100});
  add(first, compute, "experts", 500, 800, layer);
  add(first, flight, "combine", 650, 900, sends(6000));
  add(first, wait, "combine", 800, 900, layer);
  add(first, op, "forward", 0, 900, {.micro_batch = 0});
  add(first, compute, "optimizer", 900, 950);
  add(first, wait, "other", 950, 1000);
  add(first, step, "step", 0, 1000);

  RankTrace second = empty_trace(run, 1);
  add(second, compute, "norm", 0, 350, layer);
  add(second, flight, "dispatch", 350, 520, sends(2000));
  add(second, wait, "dispatch", 350, 520, layer);
  add(second, flight, "metrics", 610, 690, {.bytes = 100});
  add(second, compute, "experts", 520, 850, layer);
  add(second, flight, "combine", 850, 900, sends(2000));
  add(second, wait, "combine", 850, 900, layer);
  add(second, op, "forward", 0, 900, {.micro_batch = 0});
  add(second, compute, "optimizer", 900, 1000);
  add(second, step, "step", 0, 1000);
  return {first, second};
}

// Step 7 of a pipeline of two ranks and one micro-batch under 1f1b, from 0 to 600 us:
//
//   rank 0   norm 0-100 (forward), wait -420, norm gradient -600 (backward)
//            in flight: send activations 100-160, receive gradients 105-420
//   rank 1   wait 0-160, norm -240 (forward), norm gradient -380 (backward), wait -425, wait for nothing -600
//            in flight: receive activations 5-160, send gradients 380-425
inline std::vector<RankTrace> pipeline_traces() {
  const TracedRun run = traced_run(2, 1, 1);
  RankTrace first = empty_trace(run, 0);
  using enum TraceKind;
  const At there = {.layer = 0, .micro_batch = 0};
  const At message = {.micro_batch = 0, .bytes = 800};
  const At receives = {.micro_batch = 0};
  add(first, compute, "norm", 0, 100, there);
  add(first, op, "forward", 0, 100, receives);
  add(first, flight, "send activations", 100, 160, message);
  add(first, flight, "receive gradients", 105, 420, receives);
  add(first, wait, "receive gradients", 100, 420, receives);
  add(first, compute, "norm gradient", 420, 600, there);
  add(first, op, "backward", 420, 600, receives);
  add(first, step, "step", 0, 600);

  RankTrace second = empty_trace(run, 1);
  add(second, flight, "receive activations", 5, 160, receives);
  add(second, wait, "receive activations", 0, 160, receives);
  add(second, compute, "norm", 160, 240, there);
  add(second, op, "forward", 160, 240, receives);
  add(second, compute, "norm gradient", 240, 380, there);
  add(second, op, "backward", 240, 380, receives);
  add(second, flight, "send gradients", 380, 425, message);
  add(second, wait, "send gradients", 380, 425, receives);
  add(second, wait, "other", 425, 600);
  add(second, step, "step", 0, 600);
  return {first, second};
}

// The same events again, later by `shift_us`, as another step.
inline void repeat_step(RankTrace& trace, int64_t step, int64_t shift_us, const std::string& phase = "step") {
  const std::vector<TracedEvent> once = trace.events;
  for (TracedEvent event : once) {
    if (event.step != once.front().step) continue;
    event.step = step;
    event.begin_ns += shift_us * 1000;
    event.end_ns += shift_us * 1000;
    if (event.kind == TraceKind::step) event.phase = phase;
    trace.events.push_back(event);
  }
}

}  // namespace cadre::test
