// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/step_sums.hpp"

#include <algorithm>
#include <tuple>

namespace cadre {
namespace {

using Intervals = std::vector<Interval>;
using Place = std::tuple<std::string, int, int>;  // phase, micro-batch, layer

Place place_of(const TracedEvent& event) { return {event.phase, event.micro_batch, event.layer}; }

int64_t common(const IntervalSet& a, const IntervalSet& b) { return intersected(a, b).total(); }

// The name under which a flight of the phase, or an activity, is summed: apart from each other.
std::pair<PhaseClass, std::string> flight_row(const std::string& phase) {
  const PhaseClass phase_class = class_of(phase);
  if (phase_class != PhaseClass::compute) return {phase_class, phase};
  return {PhaseClass::reduction, phase + " requests"};
}
std::pair<PhaseClass, std::string> activity_row(const std::string& phase) {
  return {PhaseClass::compute, class_of(phase) == PhaseClass::compute ? phase : phase + " handling"};
}

// Of ops: whether they are passes, or parts of them. The others are messages, and the span of all passes.
bool computes(std::string_view op_phase) {
  return op_phase.starts_with("forward") || op_phase.starts_with("backward") || op_phase == kOverlappedOpPhase;
}

// One step, taken apart.
class StepParts {
 public:
  StepParts(const RankTrace& trace, const std::vector<FlightTimes>& times, const std::vector<size_t>& events,
            const TracedEvent& span)
      : trace_(trace), times_(times), span_{span.begin_ns, span.end_ns} {
    Intervals in_flight;
    Intervals exchanged;
    Intervals computed;
    for (const size_t i : events) {
      const TracedEvent& event = trace.events[i];
      if (event.kind == TraceKind::compute) {
        computed.push_back(add(event.begin_ns, event, activity_row(event.phase), layer_compute_));
      } else if (event.kind == TraceKind::flight) {
        in_flight.push_back(add(times[i].begin_ns, event, flight_row(event.phase), layer_flights_));
        if (class_of(event.phase) == PhaseClass::exchange) exchanged.push_back(in_flight.back());
        flights_[place_of(event)].push_back(i);
        all_flights_.push_back(i);
      }
    }
    compute_ = IntervalSet(std::move(computed));
    communication_ = IntervalSet(std::move(in_flight));
    exchange_ = IntervalSet(std::move(exchanged));
  }

  void add_to(StepSums& sums, const std::vector<size_t>& events) const {
    ++sums.num_steps;
    sums.step += span_.end - span_.begin;
    sums.compute += compute_.total();
    sums.communication += communication_.total();
    sums.hidden += common(communication_, compute_);
    sums.exchange += exchange_.total();
    sums.exchange_hidden += common(exchange_, compute_);
    sums.skew += skew(events);
    for (const auto& [row, intervals] : rows_) {
      PhaseSums& phase = sums.phases[row];
      const IntervalSet set(intervals);
      phase.time += set.total();
      if (row.first != PhaseClass::compute) phase.hidden += common(set, compute_);
    }
    for (const auto& [layer, intervals] : layer_compute_) sums.layers[layer].compute += IntervalSet(intervals).total();
    for (const auto& [layer, intervals] : layer_flights_) {
      const IntervalSet set(intervals);
      sums.layers[layer].communication += set.total();
      sums.layers[layer].hidden += common(set, compute_);
    }
    Intervals overlapped;
    Interval passes = {span_.end, span_.begin};
    const IntervalSet stage_waits = waits_for_stages(events);
    for (const size_t i : events) {
      const TracedEvent& event = trace_.events[i];
      const bool posted_here = event.begin_ns >= span_.begin && event.begin_ns < span_.end;
      if (event.kind == TraceKind::flight && posted_here) sums.phases[flight_row(event.phase)].bytes += event.bytes;
      if (event.kind != TraceKind::op) continue;
      const Interval inside = clipped(event.begin_ns, event.end_ns);
      if (event.phase == kAllPassesPhase) sums.all_passes += inside.end - inside.begin;
      if (!computes(event.phase)) continue;
      passes = {std::min(passes.begin, inside.begin), std::max(passes.end, inside.end)};
      OpSums& op = sums.ops[event.phase];
      op.busy += inside.end - inside.begin - common(IntervalSet({inside}), stage_waits);
      ++op.count;
      if (event.phase == kOverlappedOpPhase) overlapped.push_back(inside);
    }
    sums.passes.push_back(passes);
    add_steady(IntervalSet(std::move(overlapped)), sums.steady);
  }

 private:
  void add_steady(const IntervalSet& overlapped, SteadySums& steady) const {
    const IntervalSet exchange = intersected(exchange_, overlapped);
    steady.time += overlapped.total();
    steady.compute += common(compute_, overlapped);
    steady.exchange += exchange.total();
    steady.exchange_hidden += common(exchange, compute_);
  }

  Interval clipped(int64_t begin, int64_t end) const {
    return {std::max(begin, span_.begin), std::min(end, span_.end)};
  }

  Interval add(int64_t begin, const TracedEvent& event, const std::pair<PhaseClass, std::string>& row,
               std::map<int, Intervals>& layers) {
    const Interval inside = clipped(begin, event.end_ns);
    rows_[row].push_back(inside);
    if (event.layer >= 0) layers[event.layer].push_back(inside);
    return inside;
  }

  bool meets(size_t flight, const TracedEvent& wait) const {
    return trace_.events[flight].begin_ns < wait.end_ns && trace_.events[flight].end_ns > wait.begin_ns;
  }

  // The flights that the wait was for: those of its own place in the step; where none is under way, the one whose
  // completion came last before its end.
  std::vector<size_t> awaited(const TracedEvent& wait) const {
    std::vector<size_t> flights;
    if (const auto own = flights_.find(place_of(wait)); own != flights_.end()) flights = own->second;
    std::erase_if(flights, [&](size_t flight) { return !meets(flight, wait); });
    if (!flights.empty()) return flights;
    int64_t last_end = wait.begin_ns;
    for (const size_t flight : all_flights_) {
      const int64_t end = trace_.events[flight].end_ns;
      if (!meets(flight, wait) || end > wait.end_ns || end <= last_end) continue;
      last_end = end;
      flights = {flight};
    }
    return flights;
  }

  IntervalSet waits_for_stages(const std::vector<size_t>& events) const {
    Intervals waits;
    for (const size_t i : events) {
      const TracedEvent& event = trace_.events[i];
      const bool waits_for_stage = event.kind == TraceKind::wait && class_of(event.phase) == PhaseClass::pipeline;
      if (waits_for_stage) waits.push_back({event.begin_ns, event.end_ns});
    }
    return IntervalSet(std::move(waits));
  }

  // Time in waits for a flight that some rank had not yet posted its part of.
  int64_t skew(const std::vector<size_t>& events) const {
    Intervals late;
    for (const size_t i : events) {
      const TracedEvent& wait = trace_.events[i];
      if (wait.kind != TraceKind::wait) continue;
      for (const size_t flight : awaited(wait)) {
        const FlightTimes& times = times_[flight];
        late.push_back(clipped(std::max(wait.begin_ns, times.begin_ns), std::min(wait.end_ns, times.last_post_ns)));
      }
    }
    return common(IntervalSet(std::move(late)), without(communication_, compute_));
  }

  const RankTrace& trace_;
  const std::vector<FlightTimes>& times_;
  Interval span_;
  IntervalSet compute_;
  IntervalSet communication_;
  IntervalSet exchange_;
  std::map<std::pair<PhaseClass, std::string>, Intervals> rows_;
  std::map<int, Intervals> layer_compute_;
  std::map<int, Intervals> layer_flights_;
  std::map<Place, std::vector<size_t>> flights_;
  std::vector<size_t> all_flights_;
};

}  // namespace

StepEvents::StepEvents(const RankTrace& trace) {
  std::vector<size_t> spans;
  for (size_t i = 0; i < trace.events.size(); ++i) {
    if (trace.events[i].kind == TraceKind::step) spans.push_back(i);
  }
  std::ranges::sort(spans, {}, [&](size_t i) { return trace.events[i].begin_ns; });
  for (const size_t span : spans) events_[span];
  for (size_t i = 0; i < trace.events.size(); ++i) {
    const TracedEvent& event = trace.events[i];
    if (event.kind == TraceKind::step) continue;
    auto span = std::ranges::upper_bound(spans, event.begin_ns, {}, [&](size_t at) { return trace.events[at].end_ns; });
    for (; span != spans.end() && trace.events[*span].begin_ns < event.end_ns; ++span) events_[*span].push_back(i);
  }
}

void add_step(const RankTrace& trace, const std::vector<FlightTimes>& times, const StepEvents& events, size_t span,
              StepSums& sums) {
  const std::vector<size_t>& inside = events.of(span);
  StepParts(trace, times, inside, trace.events[span]).add_to(sums, inside);
}

}  // namespace cadre
