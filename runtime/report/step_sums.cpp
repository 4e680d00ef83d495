// SPDX-License-Identifier: Apache-2.0
#include "runtime/report/step_sums.hpp"

#include <algorithm>
#include <numeric>
#include <span>
#include <tuple>
#include <utility>

#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre {

IntervalSet::IntervalSet(std::vector<Interval> intervals) : intervals_(std::move(intervals)) {
  std::erase_if(intervals_, [](const Interval& one) { return one.begin >= one.end; });
  std::ranges::sort(intervals_, {}, &Interval::begin);
  size_t kept = 0;
  for (const Interval& next : intervals_) {
    if (kept > 0 && next.begin <= intervals_[kept - 1].end) {
      intervals_[kept - 1].end = std::max(intervals_[kept - 1].end, next.end);
    } else {
      intervals_[kept++] = next;
    }
  }
  intervals_.resize(kept);
}

int64_t IntervalSet::total() const {
  int64_t total = 0;
  for (const Interval& one : intervals_) total += one.end - one.begin;
  return total;
}

IntervalSet united(const IntervalSet& a, const IntervalSet& b) {
  std::vector<Interval> all = a.intervals();
  all.insert(all.end(), b.intervals().begin(), b.intervals().end());
  return IntervalSet(std::move(all));
}

IntervalSet intersected(const IntervalSet& a, const IntervalSet& b) {
  std::vector<Interval> common;
  auto one = a.intervals().begin();
  auto other = b.intervals().begin();
  while (one != a.intervals().end() && other != b.intervals().end()) {
    common.push_back({std::max(one->begin, other->begin), std::min(one->end, other->end)});
    if (one->end < other->end) {
      ++one;
    } else {
      ++other;
    }
  }
  return IntervalSet(std::move(common));
}

IntervalSet without(const IntervalSet& a, const IntervalSet& b) {
  std::vector<Interval> rest;
  auto hole = b.intervals().begin();
  for (Interval one : a.intervals()) {
    while (hole != b.intervals().end() && hole->end <= one.begin) ++hole;
    for (auto next = hole; next != b.intervals().end() && next->begin < one.end; ++next) {
      rest.push_back({one.begin, next->begin});
      one.begin = next->end;
    }
    rest.push_back(one);
  }
  return IntervalSet(std::move(rest));
}

namespace {

using Intervals = std::vector<Interval>;
using Place = std::tuple<std::string, int, int>;  // phase, micro-batch, layer

Place place_of_event(const TracedEvent& event) { return {event.phase, event.micro_batch, event.layer}; }

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
        computed.push_back(add(event.begin_ns, event.end_ns, activity_row(event.phase)));
        if (event.layer >= 0) layer_compute_[event.layer].push_back(computed.back());
      } else if (event.kind == TraceKind::flight && trace.run.num_ranks > 1) {
        const PhaseClass phase_class = class_of(event.phase);
        const Interval inside = add(times[i].begin_ns, times[i].end_ns, flight_row(event.phase));
        if (phase_class == PhaseClass::control) continue;
        in_flight.push_back(inside);
        if (phase_class == PhaseClass::exchange) exchanged.push_back(inside);
        if (event.layer >= 0) layer_flights_[event.layer].push_back(inside);
        flights_[place_of_event(event)].push_back(i);
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
    if (trace_.run.num_ranks > 1) {
      sums.control += without(waits_for(PhaseClass::control, events), communication_).total();
    }
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
    const IntervalSet stage_waits = waits_for(PhaseClass::pipeline, events);
    for (const size_t i : events) {
      const TracedEvent& event = trace_.events[i];
      if (event.kind == TraceKind::flight) add_message(i, sums);
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

  void add_message(size_t i, StepSums& sums) const {
    const TracedEvent& event = trace_.events[i];
    const bool posted_here = event.begin_ns >= span_.begin && event.begin_ns < span_.end;
    if (event.bytes == 0 || !posted_here || trace_.run.num_ranks == 1) return;
    PhaseSums& phase = sums.phases[flight_row(event.phase)];
    phase.bytes += event.bytes;
    // A part that ended before the last rank posted did not need it.
    const FlightTimes& times = times_[i];
    phase.message_time +=
        times.arrival_ns - (times.last_post_ns < times.arrival_ns ? times.last_post_ns : times.begin_ns);
  }

  Interval clipped(int64_t begin, int64_t end) const {
    return {std::max(begin, span_.begin), std::min(end, span_.end)};
  }

  Interval add(int64_t begin, int64_t end, const std::pair<PhaseClass, std::string>& row) {
    const Interval inside = clipped(begin, end);
    rows_[row].push_back(inside);
    return inside;
  }

  bool meets(size_t flight, const TracedEvent& wait) const {
    return trace_.events[flight].begin_ns < wait.end_ns && trace_.events[flight].end_ns > wait.begin_ns;
  }

  // The flights that the wait was for: those of its own place in the step; where none is under way, the one whose
  // completion came last before its end.
  std::vector<size_t> awaited(const TracedEvent& wait) const {
    std::vector<size_t> flights;
    if (const auto own = flights_.find(place_of_event(wait)); own != flights_.end()) flights = own->second;
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

  IntervalSet waits_for(PhaseClass phase_class, const std::vector<size_t>& events) const {
    Intervals waits;
    for (const size_t i : events) {
      const TracedEvent& event = trace_.events[i];
      if (event.kind != TraceKind::wait || class_of(event.phase) != phase_class) continue;
      waits.push_back(clipped(event.begin_ns, event.end_ns));
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

namespace {

constexpr double kMsPerNs = 1e-6;

// What ops cost on some ranks, in ms; one that did not run costs what its parts do.
Cost measured_cost(std::span<const StepSums> ranks) {
  const auto mean = [&](const char* phase) {
    OpSums all;
    for (const StepSums& rank : ranks) {
      const auto found = rank.ops.find(phase);
      if (found == rank.ops.end()) continue;
      all.busy += found->second.busy;
      all.count += found->second.count;
    }
    return all.count == 0 ? -1.0 : static_cast<double>(all.busy) * kMsPerNs / static_cast<double>(all.count);
  };
  const auto known_or = [](double value, double otherwise) { return value >= 0 ? value : std::max(otherwise, 0.0); };
  Cost cost = {mean("forward"), mean("backward"), mean("backward input"), mean("backward weight"), mean("overlapped")};
  const bool has_halves = cost.backward_input >= 0 && cost.backward_weight >= 0;
  cost.backward =
      known_or(cost.backward, has_halves ? cost.backward_input + cost.backward_weight : cost.overlapped - cost.forward);
  cost.forward = known_or(cost.forward, cost.overlapped - cost.backward);
  cost.backward_input = known_or(cost.backward_input, cost.backward / 2);
  cost.backward_weight = known_or(cost.backward_weight, cost.backward - cost.backward_input);
  cost.overlapped = known_or(cost.overlapped, cost.forward + cost.backward);
  return cost;
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// From the first pass on any rank to the end of the last, less what a rank works in it, in ms a step.
double measured_idle(const std::vector<StepSums>& sums) {
  double passes = 0;
  for (size_t step = 0; step < sums.front().passes.size(); ++step) {
    Interval all = sums.front().passes[step];
    for (const StepSums& rank : sums) {
      all = {std::min(all.begin, rank.passes[step].begin), std::max(all.end, rank.passes[step].end)};
    }
    passes += ms_per_step(all.end - all.begin, sums.front());
  }
  std::vector<double> idle;
  for (const StepSums& rank : sums) {
    idle.push_back(passes);
    for (const auto& [phase, op] : rank.ops) idle.back() -= ms_per_step(op.busy, rank);
  }
  return mean_of(idle);
}

}  // namespace

double ms_per_step(int64_t nanoseconds, const StepSums& sums) {
  return static_cast<double>(nanoseconds) * kMsPerNs / static_cast<double>(sums.num_steps);
}

std::optional<Bubble> bubble_of(const TracedRun& run, const std::vector<StepSums>& sums) {
  const std::vector<std::string> known = schedule_names();
  if (run.pipeline == 1 || std::ranges::find(known, run.schedule) == known.end()) return std::nullopt;
  const Program program = make_program(run.schedule, run.pipeline, run.num_micro_batches);
  Costs costs;
  for (int row = 0; row < run.pipeline; ++row) {
    costs.push_back(
        measured_cost(std::span(sums).subspan(static_cast<size_t>(row * run.data), static_cast<size_t>(run.data))));
  }
  return Bubble{.measured = measured_idle(sums),
                .simulated = mean_of(simulate(program, costs).idle),
                .formula = formula_bubble(program, measured_cost(sums)),
                .formula_text = formula_text(program)};
}

}  // namespace cadre
