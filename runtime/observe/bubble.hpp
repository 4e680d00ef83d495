// SPDX-License-Identifier: Apache-2.0
// The bubble of a pipeline, as it was and as its schedule says.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/observe/rank_trace.hpp"
#include "runtime/observe/step_sums.hpp"

namespace cadre {

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
