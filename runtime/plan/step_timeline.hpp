// SPDX-License-Identifier: Apache-2.0
// A predicted step as a picture in numbers: what each row of the pipeline does when. Pure.
#pragma once

#include <string>
#include <vector>

#include "runtime/plan/rank_clock.hpp"
#include "runtime/plan/step_shape.hpp"

namespace cadre {

// In seconds from the begin of the step; what is neither compute nor exposed is the bubble.
struct RowTimeline {
  std::vector<ClockSpan> compute;
  std::vector<ClockSpan> exposed;  // waits for exchanges, sums, values, rows in flight
  std::vector<ClockSpan> hidden;   // these in flight while the row computes
};

struct StepTimeline {
  double step_s = 0.0;
  std::vector<RowTimeline> rows;  // of the rank with the busiest experts in each
};

// Of the same step as predict_step's.
StepTimeline step_timeline(const StepShape& shape, bool overlap = true);

// 800 pixels wide, a row of bars a row of the pipeline, the axis in ms. Where a pixel is longer than what happens in it, its
// colours are as high as their shares. `title` is any text.
std::string timeline_svg(const StepTimeline& timeline, const std::string& title);

}  // namespace cadre
