// SPDX-License-Identifier: Apache-2.0
// Records what a rank did and when. A thread does one thing at a time, so its trace is a sequence of activities without
// gaps: Tracer::switch_to ends one and begins the next. Beside them lie the spans that enclose activities (steps, ops of the
// schedule) and the requests in flight. Recording only; runtime/observe turns it into files and reports. A rank without
// a recorder pays one branch a call. Where the CUDA Toolkit was found, activities are NVTX ranges, too.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <thread>
#include <vector>

namespace cadre {

// Where in the run a rank is, for messages and traces. -1: not inside a step, a micro-batch, a layer.
struct Position {
  int64_t step = -1;
  int micro_batch = -1;
  int layer = -1;
  const char* phase = "";  // a string literal

  std::string describe() const;  // "step 12, micro-batch 1, layer 3, dispatch"
};

enum class TraceKind : uint8_t {
  compute,  // an activity: the thread works
  wait,     // an activity: nothing can go on until a request is complete
  step,     // a span around activities
  op,       // a span around activities: one op of the schedule
  flight,   // a request, from its posting until its completion was seen; flights may overlap with everything
};
inline constexpr size_t kNumTraceKinds = 5;

struct TraceEvent {
  TraceKind kind;
  Position at;
  int64_t begin_ns;  // steady clock of this host
  int64_t end_ns;
  int64_t bytes = 0;  // flight: sent to other ranks
};

int64_t trace_clock_ns();

// One thread's ring. When it is full the oldest events are overwritten.
class TraceRecorder {
 public:
  explicit TraceRecorder(size_t capacity) : ring_(capacity) {}

  // Whether events are kept from now on; totals are counted always.
  void keep(bool on) { keep_ = on; }
  void add(const TraceEvent& event);

  // Ends the activity under way, if any, and begins another.
  void begin(TraceKind kind, const Position& at);
  void relabel(const Position& at) { activity_.at = at; }
  void end();
  const TraceEvent& activity() const { return activity_; }

  // The events still in the ring, in the order in which they ended.
  std::vector<TraceEvent> events() const;
  uint64_t num_lost() const;  // overwritten
  // Nanoseconds by kind since the last call.
  std::array<int64_t, kNumTraceKinds> take_totals();

 private:
  bool keep_ = true;
  bool is_active_ = false;
  TraceEvent activity_ = {};
  std::vector<TraceEvent> ring_;
  uint64_t num_added_ = 0;
  std::array<int64_t, kNumTraceKinds> totals_{};
};

// What a rank does, as of its last report.
struct Whereabouts {
  bool waits = false;  // else it computes
  Position at;
  int64_t since_ns = 0;  // trace_clock_ns(); 0: no report yet
};

// The trace of one rank: its recorder, if it has one, and its whereabouts, which other threads may read.
class Tracer {
 public:
  Tracer() = default;
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  // From here on the rank works on `at`.
  void switch_to(const Position& at) {
    note(TraceKind::compute, at);
    if (TraceRecorder* active = recorder()) active->begin(TraceKind::compute, at);
  }
  void note(TraceKind kind, const Position& at);
  // Any thread. A reading while it changes may mix two reports; it is for messages.
  Whereabouts whereabouts() const;

  // That of the thread that attached it; nullptr on other threads.
  TraceRecorder* recorder() const {
    return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id() ? recorder_ : nullptr;
  }

 private:
  friend class TraceScope;

  TraceRecorder* recorder_ = nullptr;
  std::atomic<std::thread::id> owner_ = std::thread::id();
  std::atomic<bool> waits_ = false;
  std::atomic<int64_t> step_ = -1;
  std::atomic<int> micro_batch_ = -1;
  std::atomic<int> layer_ = -1;
  std::atomic<const char*> phase_ = "";
  std::atomic<int64_t> since_ns_ = 0;
};

// Attaches a recorder to the tracer, for a C++ scope of the rank's own thread.
class TraceScope {
 public:
  TraceScope(Tracer& tracer, TraceRecorder& recorder);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  Tracer& tracer_;
  TraceRecorder* previous_;
  std::thread::id previous_owner_;
};

// An activity for a C++ scope; the one before goes on at its end. After an exception the tracer's whereabouts stay those of
// the innermost activity.
class TraceActivity {
 public:
  TraceActivity(Tracer& tracer, TraceKind kind, const Position& at);
  ~TraceActivity();
  TraceActivity(const TraceActivity&) = delete;
  TraceActivity& operator=(const TraceActivity&) = delete;

  // Now that it is known what it was for.
  void relabel(const Position& at);

 private:
  Tracer& tracer_;
  TraceRecorder* recorder_;
  TraceEvent before_ = {};
  Whereabouts whereabouts_before_;
  int exceptions_ = std::uncaught_exceptions();
};

// A span around activities, from construction to destruction.
class TraceSpan {
 public:
  TraceSpan(const Tracer& tracer, TraceKind kind, const Position& at);
  ~TraceSpan();
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceRecorder* recorder_;
  TraceEvent event_ = {};
};

}  // namespace cadre
