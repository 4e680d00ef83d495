// SPDX-License-Identifier: Apache-2.0
#include "comm/base/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "comm/base/nvtx.hpp"

namespace cadre {
namespace {

thread_local TraceRecorder* current_recorder = nullptr;

struct SharedWhereabouts {
  std::atomic<bool> waits = false;
  std::atomic<int64_t> step = -1;
  std::atomic<int> micro_batch = -1;
  std::atomic<int> layer = -1;
  std::atomic<const char*> phase = "";
  std::atomic<int64_t> since_ns = 0;
};
SharedWhereabouts shared_whereabouts;

}  // namespace

void note_whereabouts(TraceKind kind, const Position& at) {
  constexpr auto relaxed = std::memory_order_relaxed;
  shared_whereabouts.waits.store(kind == TraceKind::wait, relaxed);
  shared_whereabouts.step.store(at.step, relaxed);
  shared_whereabouts.micro_batch.store(at.micro_batch, relaxed);
  shared_whereabouts.layer.store(at.layer, relaxed);
  shared_whereabouts.phase.store(at.phase, relaxed);
  shared_whereabouts.since_ns.store(trace_clock_ns(), relaxed);
}

Whereabouts whereabouts() {
  const SharedWhereabouts& shared = shared_whereabouts;
  return {shared.waits, {shared.step, shared.micro_batch, shared.layer, shared.phase}, shared.since_ns};
}

std::string Position::describe() const {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (step >= 0) add(fmt::format("step {}", step));
  if (micro_batch >= 0) add(fmt::format("micro-batch {}", micro_batch));
  if (layer >= 0) add(fmt::format("layer {}", layer));
  if (*phase != '\0') add(phase);
  return text.empty() ? "outside of a step" : text;
}

int64_t trace_clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void TraceRecorder::add(const TraceEvent& event) {
  totals_[static_cast<size_t>(event.kind)] += event.end_ns - event.begin_ns;
  if (!keep_ || ring_.empty()) return;
  ring_[num_added_ % ring_.size()] = event;
  ++num_added_;
}

void TraceRecorder::begin(TraceKind kind, const Position& at) {
  const int64_t now = trace_clock_ns();
  if (is_active_) {
    activity_.end_ns = now;
    if (activity_.begin_ns != now) add(activity_);
    nvtx_pop();
  }
  nvtx_push(*at.phase == '\0' ? "cadre" : at.phase);
  activity_ = {kind, at, now, now};
  is_active_ = true;
}

void TraceRecorder::end() {
  if (!is_active_) return;
  activity_.end_ns = trace_clock_ns();
  add(activity_);
  nvtx_pop();
  is_active_ = false;
  activity_ = {};
}

std::vector<TraceEvent> TraceRecorder::events() const {
  const uint64_t first = num_lost();
  std::vector<TraceEvent> events;
  events.reserve(num_added_ - first);
  for (uint64_t i = first; i < num_added_; ++i) events.push_back(ring_[i % ring_.size()]);
  return events;
}

uint64_t TraceRecorder::num_lost() const { return num_added_ - std::min<uint64_t>(num_added_, ring_.size()); }

std::array<int64_t, kNumTraceKinds> TraceRecorder::take_totals() { return std::exchange(totals_, {}); }

TraceRecorder* trace_recorder() { return current_recorder; }

TraceScope::TraceScope(TraceRecorder& recorder) : previous_(std::exchange(current_recorder, &recorder)) {}

TraceScope::~TraceScope() { current_recorder = previous_; }

TraceActivity::TraceActivity(TraceKind kind, const Position& at)
    : recorder_(current_recorder), whereabouts_before_(whereabouts()) {
  note_whereabouts(kind, at);
  if (recorder_ == nullptr) return;
  before_ = recorder_->activity();
  recorder_->begin(kind, at);
}

TraceActivity::~TraceActivity() {
  note_whereabouts(whereabouts_before_.waits ? TraceKind::wait : TraceKind::compute, whereabouts_before_.at);
  if (recorder_ == nullptr) return;
  if (before_.begin_ns == 0) {
    recorder_->end();
  } else {
    recorder_->begin(before_.kind, before_.at);
  }
}

void TraceActivity::relabel(const Position& at) {
  note_whereabouts(TraceKind::wait, at);
  if (recorder_ != nullptr) recorder_->relabel(at);
}

TraceSpan::TraceSpan(TraceKind kind, const Position& at) : recorder_(current_recorder) {
  if (recorder_ != nullptr) event_ = {kind, at, trace_clock_ns(), 0};
}

TraceSpan::~TraceSpan() {
  if (recorder_ == nullptr) return;
  event_.end_ns = trace_clock_ns();
  recorder_->add(event_);
}

}  // namespace cadre
