// SPDX-License-Identifier: Apache-2.0
// The list of a rank in DualPipe and DualPipeV, which differ only in where its two stages lie.
#pragma once

#include <array>

#include "runtime/schedule/emitter.hpp"

namespace cadre {

// Where a rank stands in the pipeline: between the end at which the micro-batches of phase 0 enter, and the middle (or
// the turn of the V), where the phases meet.
struct PlaceInPipeline {
  int from_end;   // ranks between this one and its end
  int to_middle;  // ranks between this one and the middle
};

// `num_micro_batches` pass each phase.
OpList eight_steps(std::array<Phase, 2> phases, PlaceInPipeline place, int num_micro_batches);

}  // namespace cadre
