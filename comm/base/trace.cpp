// SPDX-License-Identifier: Apache-2.0
#include "comm/base/trace.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

namespace cadre {
namespace {

thread_local TraceRecorder* current_recorder = nullptr;

}  // namespace

int64_t trace_clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void TraceRecorder::add(const TraceEvent& event) {
  totals_[static_cast<size_t>(event.kind)] += event.end_ns - event.begin_ns;
  if (!ring_.empty()) ring_[num_added_ % ring_.size()] = event;
  ++num_added_;
}

std::vector<TraceEvent> TraceRecorder::events() const {
  const uint64_t num_kept = std::min<uint64_t>(num_added_, ring_.size());
  std::vector<TraceEvent> events;
  events.reserve(num_kept);
  for (uint64_t i = num_added_ - num_kept; i < num_added_; ++i) events.push_back(ring_[i % ring_.size()]);
  return events;
}

std::array<int64_t, kNumTraceKinds> TraceRecorder::take_totals() { return std::exchange(totals_, {}); }

TraceScope::TraceScope(TraceRecorder& recorder) : previous_(std::exchange(current_recorder, &recorder)) {}

TraceScope::~TraceScope() { current_recorder = previous_; }

TraceSpan::TraceSpan(const char* name, TraceKind kind) : recorder_(current_recorder), name_(name), kind_(kind) {
  if (recorder_ != nullptr) begin_ns_ = trace_clock_ns();
}

TraceSpan::~TraceSpan() {
  if (recorder_ != nullptr) recorder_->add({name_, kind_, begin_ns_, trace_clock_ns()});
}

}  // namespace cadre
