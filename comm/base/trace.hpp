// SPDX-License-Identifier: Apache-2.0
// Records what a thread did and when: spans into a ring, and the time spent by kind. Recording only; runtime/observe
// turns it into reports. A thread without a recorder pays one branch a span.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cadre {

enum class TraceKind : uint8_t { compute, wait };
inline constexpr size_t kNumTraceKinds = 2;

struct TraceEvent {
  const char* name;  // a string literal
  TraceKind kind;
  int64_t begin_ns;  // steady clock of this host
  int64_t end_ns;
};

int64_t trace_clock_ns();

// One thread's ring. When it is full the oldest spans are overwritten.
class TraceRecorder {
 public:
  explicit TraceRecorder(size_t capacity) : ring_(capacity) {}

  void add(const TraceEvent& event);
  // The spans still in the ring, oldest first.
  std::vector<TraceEvent> events() const;
  // Nanoseconds by kind since the last call.
  std::array<int64_t, kNumTraceKinds> take_totals();

 private:
  std::vector<TraceEvent> ring_;
  uint64_t num_added_ = 0;
  std::array<int64_t, kNumTraceKinds> totals_{};
};

// Makes `recorder` the one of the calling thread for a C++ scope.
class TraceScope {
 public:
  explicit TraceScope(TraceRecorder& recorder);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  TraceRecorder* previous_;
};

// One span, from construction to destruction, in the calling thread.
class TraceSpan {
 public:
  TraceSpan(const char* name, TraceKind kind);
  ~TraceSpan();
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceRecorder* recorder_;
  const char* name_;
  TraceKind kind_;
  int64_t begin_ns_ = 0;
};

}  // namespace cadre
