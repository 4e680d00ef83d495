// SPDX-License-Identifier: Apache-2.0
// The expert-parallel load balancer that DeepSeek published (EPLB, 2025), step by step and in its fp32 arithmetic:
// groups of experts to nodes, copies of busy experts inside each node, copies to ranks. Where its reference leaves ties
// open, sorting here is stable and the lowest index wins, which gives the results that it was published with.
#pragma once

#include <span>
#include <vector>

#include "runtime/placement/expert_slots.hpp"

namespace cadre {

// Throws where the algorithm needs sizes that divide: groups the experts, nodes the groups and ranks (else groups and
// nodes are left out of account), ranks the slots.
void check_eplb(int num_experts, const PlacementSizes& sizes);
bool eplb_can_run(int num_experts, const PlacementSizes& sizes);

// weight [experts], as check_eplb wants the sizes.
ExpertSlots eplb(std::span<const double> weight, const PlacementSizes& sizes);

// Its building blocks. Items into packs of equally many: heaviest first, each to the lightest pack that has room.
struct Packing {
  std::vector<int> pack;   // [items]
  std::vector<int> place;  // [items] in its pack
};
Packing balanced_packing(std::span<const float> weight, int num_packs);

// `slots` copies of weight.size() experts: one each, then again and again one of the expert with most load a copy.
struct Replication {
  std::vector<int> expert;  // [slots]
  std::vector<int> copy;    // [slots]
  std::vector<int> copies;  // [experts]
};
Replication replicate_experts(std::span<const float> weight, int slots);

}  // namespace cadre
