// SPDX-License-Identifier: Apache-2.0
// The times of one rank, summed over steps in exact nanoseconds: what the figures of a report are made of.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime/observe/intervals.hpp"
#include "runtime/observe/matching.hpp"
#include "runtime/observe/phases.hpp"
#include "runtime/observe/rank_trace.hpp"

namespace cadre {

struct PhaseSums {
  int64_t time = 0;    // of activities, or in flight
  int64_t hidden = 0;  // of the time in flight
  int64_t bytes = 0;
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
  int64_t all_passes = 0;  // the span of the forward and backward passes and the sums of their gradients
  SteadySums steady;
  std::map<std::pair<PhaseClass, std::string>, PhaseSums> phases;
  std::map<int, LayerSums> layers;
  std::map<std::string, OpSums> ops;  // those that compute, by the phase of their spans
  std::vector<Interval> passes;       // from the first of these ops to the last, of each step

  int64_t exposed() const { return communication - hidden; }
  int64_t idle() const { return step - compute - exposed(); }
};

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
// the border of the step counts as far as it lies inside; bytes count where they were posted.
void add_step(const RankTrace& trace, const std::vector<FlightTimes>& times, const StepEvents& events, size_t span,
              StepSums& sums);

}  // namespace cadre
