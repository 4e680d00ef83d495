// SPDX-License-Identifier: Apache-2.0
#include "comm/base/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "comm/base/nvtx.hpp"

namespace cadre {

void Tracer::note(TraceKind kind, const Position& at) {
  constexpr auto relaxed = std::memory_order_relaxed;
  waits_.store(kind == TraceKind::wait, relaxed);
  step_.store(at.step, relaxed);
  micro_batch_.store(at.micro_batch, relaxed);
  layer_.store(at.layer, relaxed);
  phase_.store(at.phase, relaxed);
  since_ns_.store(trace_clock_ns(), relaxed);
}

Whereabouts Tracer::whereabouts() const { return {waits_, {step_, micro_batch_, layer_, phase_}, since_ns_}; }

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

TraceScope::TraceScope(Tracer& tracer, TraceRecorder& recorder)
    : tracer_(tracer),
      previous_(std::exchange(tracer.recorder_, &recorder)),
      previous_owner_(tracer.owner_.exchange(std::this_thread::get_id())) {}

TraceScope::~TraceScope() {
  tracer_.owner_.store(previous_owner_);
  tracer_.recorder_ = previous_;
}

TraceActivity::TraceActivity(Tracer& tracer, TraceKind kind, const Position& at)
    : tracer_(tracer), recorder_(tracer.recorder()), whereabouts_before_(tracer.whereabouts()) {
  tracer_.note(kind, at);
  if (recorder_ == nullptr) return;
  before_ = recorder_->activity();
  recorder_->begin(kind, at);
}

TraceActivity::~TraceActivity() {
  if (std::uncaught_exceptions() == exceptions_) {
    tracer_.note(whereabouts_before_.waits ? TraceKind::wait : TraceKind::compute, whereabouts_before_.at);
  }
  if (recorder_ == nullptr) return;
  if (before_.begin_ns == 0) {
    recorder_->end();
  } else {
    recorder_->begin(before_.kind, before_.at);
  }
}

void TraceActivity::relabel(const Position& at) {
  tracer_.note(TraceKind::wait, at);
  if (recorder_ != nullptr) recorder_->relabel(at);
}

TraceSpan::TraceSpan(const Tracer& tracer, TraceKind kind, const Position& at) : recorder_(tracer.recorder()) {
  if (recorder_ != nullptr) event_ = {kind, at, trace_clock_ns(), 0};
}

TraceSpan::~TraceSpan() {
  if (recorder_ == nullptr) return;
  event_.end_ns = trace_clock_ns();
  recorder_->add(event_);
}

}  // namespace cadre
