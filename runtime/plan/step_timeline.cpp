// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/step_timeline.hpp"

#include <algorithm>
#include <utility>

#include "runtime/plan/run_passes.hpp"

namespace cadre {

StepTimeline step_timeline(const StepShape& shape, bool overlap) {
  const PassesRun run = run_passes(shape, overlap ? ClockOverlap::on : ClockOverlap::off, /*hands_values=*/true);
  const double passes_s = std::ranges::max(run.ends);
  StepTimeline timeline;
  double longest = 0.0;
  for (int row = 0; row < shape.program.num_ranks; ++row) {
    RowSpans spans = spans_of_row(shape, run, row);
    RowTimeline& one = timeline.rows.emplace_back();
    one.hidden = common_of(spans.flights, spans.working);
    const double tail = tail_of_row(shape, row);
    if (tail > 0.0) spans.working.push_back({passes_s, passes_s + tail});
    one.compute = std::move(spans.working);
    one.exposed = std::move(spans.exposed);
    longest = std::max(longest, tail);
  }
  timeline.step_s = passes_s + longest + shape.tail_latency_s;
  if (shape.tail_latency_s > 0.0) {
    for (RowTimeline& row : timeline.rows) row.exposed.push_back({passes_s + longest, timeline.step_s});
  }
  return timeline;
}

}  // namespace cadre
