// SPDX-License-Identifier: Apache-2.0
// The times of one rank, summed over steps in exact nanoseconds: what the figures of a report are made of.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/observe/matching.hpp"
#include "runtime/observe/rank_trace.hpp"

namespace cadre {

// Sets of time as sorted intervals that neither touch nor overlap: what was computed, what was in flight, and both at
// once. Integer nanoseconds, so that totals are exact.

// [begin, end)
struct Interval {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const Interval&) const = default;
};

class IntervalSet {
 public:
  IntervalSet() = default;
  // The union of intervals in any order; those that are empty or end before they begin hold nothing.
  explicit IntervalSet(std::vector<Interval> intervals);

  const std::vector<Interval>& intervals() const { return intervals_; }
  int64_t total() const;

  bool operator==(const IntervalSet&) const = default;

 private:
  std::vector<Interval> intervals_;
};

IntervalSet united(const IntervalSet& a, const IntervalSet& b);
IntervalSet intersected(const IntervalSet& a, const IntervalSet& b);
IntervalSet without(const IntervalSet& a, const IntervalSet& b);  // what of a is not in b

struct PhaseSums {
  int64_t time = 0;    // of activities, or in flight
  int64_t hidden = 0;  // of the time in flight
  int64_t bytes = 0;
  int64_t message_time = 0;  // of the messages that carry bytes, one by one: from the last post to the arrival
};

struct LayerSums {
  int64_t compute = 0;
  int64_t communication = 0;
  int64_t hidden = 0;
};

struct OpSums {
  int64_t busy = 0;  // but for waits for rows of other stages
  int64_t count = 0;
};

// Inside the ops that overlap a forward with a backward pass.
struct SteadySums {
  int64_t time = 0;
  int64_t compute = 0;
  int64_t exchange = 0;
  int64_t exchange_hidden = 0;
};

struct StepSums {
  int64_t num_steps = 0;
  int64_t step = 0;
  int64_t compute = 0;
  int64_t communication = 0;
  int64_t hidden = 0;
  int64_t exchange = 0;
  int64_t exchange_hidden = 0;
  int64_t skew = 0;
  int64_t control = 0;     // a wait for a control message, without communication
  int64_t all_passes = 0;  // the span of the forward and backward passes and the sums of their gradients
  SteadySums steady;
  std::map<std::pair<PhaseClass, std::string>, PhaseSums> phases;
  std::map<int, LayerSums> layers;
  std::map<std::string, OpSums> ops;  // those that compute, by the phase of their spans
  std::vector<Interval> passes;       // from the first of these ops to the last, of each step

  int64_t exposed() const { return communication - hidden; }
  int64_t idle() const { return step - compute - exposed() - control; }
};

// A sum over steps as milliseconds a step.
double ms_per_step(int64_t nanoseconds, const StepSums& sums);

// Which events of a trace lie in which of its step spans, wholly or in part.
class StepEvents {
 public:
  explicit StepEvents(const RankTrace& trace);

  // Of the step span trace.events[span].
  const std::vector<size_t>& of(size_t span) const { return events_.at(span); }

 private:
  std::map<size_t, std::vector<size_t>> events_;
};

// Adds the step whose span is trace.events[span]. `times`: of the events of this trace, from flight_times. What crosses
// the border of the step counts as far as it lies inside; bytes count where they were posted. Requests of a run of one rank
// do not count: nothing travels.
void add_step(const RankTrace& trace, const std::vector<FlightTimes>& times, const StepEvents& events, size_t span,
              StepSums& sums);

// What a rank does not work between the first pass on any rank and the end of the last, because it waits for other stages,
// mean over ranks: measured, by simulation of the schedule with the measured cost of each rank's ops, by formula.
struct Bubble {
  double measured = 0;
  double simulated = 0;
  double formula = 0;
  std::string formula_text;
};

// From the sums of all ranks over the same steps. None without a pipeline, or with a schedule that this build does not know.
std::optional<Bubble> bubble_of(const TracedRun& run, const std::vector<StepSums>& sums);

}  // namespace cadre
