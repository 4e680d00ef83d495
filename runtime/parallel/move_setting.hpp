// SPDX-License-Identifier: Apache-2.0
// What decides about moves of experts between the ranks of a worker: whether they can move, and what a byte takes, measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/parallel/worker.hpp"
#include "runtime/placement/rebalance.hpp"

namespace cadre {

struct MoveSetting {
  int groups = 1;  // of routing and of hosts: see PlacementSizes
  int nodes = 1;
  double seconds_per_byte = 0.0;       // between ranks
  double copy_seconds_per_byte = 0.0;  // of a rank
  int64_t value_bytes = 0;             // of one expert, the most on any rank
  int64_t expert_bytes = 0;            // that travel for one expert, the same
};

// Why no expert can move, in words; "" where experts can. The same on all ranks.
std::string why_experts_stay(const Worker& worker);

// `state_bytes` travel beside the values of all experts of this rank: gradients and moments. Collective over the world of the
// worker.
MoveSetting measure_moves(Worker& worker, int64_t state_bytes);

// Of these layers, in their order.
std::vector<ExpertMap> mixture_maps(const Worker& worker, const std::vector<int>& layers);

}  // namespace cadre
