// SPDX-License-Identifier: Apache-2.0
// Which rank gives which tensor of a run's state to which rank, when the ranks hold other tensors than before. Tensors are
// known by the hash of the name that they have in checkpoints.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/base/trace.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// Lists of any length of all ranks. Collective over `world`.
std::vector<std::vector<uint64_t>> gather_lists(const Communicator& world, double deadline_seconds, const Position& at,
                                                std::vector<uint64_t> mine);
// The same, in the background. Neither blocks.
Pending<std::vector<std::vector<uint64_t>>> start_gather_lists(const Communicator& group, std::vector<uint64_t> mine);

// For each rank the tensors that it wants, and the rank that gives each: itself where it can, else one of those that hold it,
// so that these take turns by the rank that wants. Empty where no rank holds one.
std::vector<std::vector<int>> givers_of(const std::vector<std::vector<uint64_t>>& wanted,
                                        const std::vector<std::vector<uint64_t>>& held);

}  // namespace cadre
