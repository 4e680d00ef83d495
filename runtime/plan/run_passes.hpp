// SPDX-License-Identifier: Apache-2.0
// The passes of a step on the clocks of all rows of the pipeline, one rank a row. Pure.
#pragma once

#include <deque>
#include <vector>

#include "runtime/plan/rank_clock.hpp"
#include "runtime/plan/step_shape.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre {

struct PassesRun {
  std::deque<RankClock> clocks;  // by row
  std::vector<double> ends;      // of each row, with its sums
  Walk walk;
  std::vector<double> sent;  // by message: when its rows were handed over
};

// `hands_values`: new values are handed over first, as amid a run. `shape` outlives the result.
PassesRun run_passes(const StepShape& shape, ClockOverlap overlap, bool hands_values);

// What a row's rank does, in seconds from the begin of the passes to its end; each a union, ascending.
struct RowSpans {
  std::vector<ClockSpan> rows;     // of activations and gradients, on their way to it
  std::vector<ClockSpan> exposed;  // waits while something is in flight
  std::vector<ClockSpan> working;  // neither that nor idle
  std::vector<ClockSpan> flights;  // exchanges, sums, values and rows
};
RowSpans spans_of_row(const StepShape& shape, const PassesRun& run, int row);

// Of a row, after the passes: norm, update, copies of weights.
double tail_of_row(const StepShape& shape, int row);
// That a row holds, ascending.
std::vector<int> stages_of_row(const Program& program, int row);

}  // namespace cadre
