// SPDX-License-Identifier: Apache-2.0
// Moves experts between the ranks of a running job, in place: each rank holds as many experts as before, so that the state of
// one that arrives (weights, moments, whatever belongs to its parameters) takes the memory of one that leaves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

// What a rank of a run exchanges at once while experts move, in each direction.
inline constexpr size_t kMovePieceBytes = size_t{8} << 20;

// The state of experts that this rank keeps, under the names of checkpoints, in the memory of its store.
using ExpertState = std::function<std::vector<NamedTensor>()>;

struct MovedBytes {
  int64_t all = 0;      // received by all ranks
  int64_t busiest = 0;  // sent and received by the rank with most
};

// Collective over the world of `worker`, between steps. Gives the model the experts of `maps`, which has as many on each rank as
// before, and their state. Ranks exchange at most `piece_bytes` in each direction at a time, more only where each tensor
// under way gets 4 KiB; that much memory is taken meanwhile. When it throws, state is incomplete: the run goes on from a
// checkpoint or from partner copies, which know no map.
MovedBytes move_experts(Worker& worker, const ExpertMaps& maps, const ExpertState& state, size_t piece_bytes);

}  // namespace cadre
