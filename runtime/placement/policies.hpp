// SPDX-License-Identifier: Apache-2.0
// The policies that place one layer of experts: DeepSeek's load balancer and Cadre's own.
#pragma once

#include <span>
#include <vector>

#include "runtime/placement/expert_slots.hpp"

namespace cadre {

// The expert-parallel load balancer that DeepSeek published (EPLB, 2025), step by step and in its fp32 arithmetic:
// groups of experts to nodes, copies of busy experts inside each node, copies to ranks. Where its reference leaves ties
// open, sorting here is stable and the lowest index wins, which gives the results that it was published with.

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

// Cadre's own placement of a layer's experts, for any number of experts, slots and ranks.
//
// - No rank holds two copies of one expert, but where eplb does and no way was found to be as well balanced without. A slot
//   that could only be filled by that, or only by making the busiest rank busier, stays empty.
// - The busiest rank is at most as busy as under eplb, where that can run, and as with the experts in a row.
// - Where eplb would keep groups on nodes, so does this, unless the experts in a row are better balanced than that allows.
//
// With a placement before, it moves little. Rule: if the placement before, under these loads, is as good as promised above
// and within kSlack of what a fresh plan reaches, it stays. Else steps that each send one or two copies, and of all those
// lower the peak the most for each copy sent, lead from it to the first placement that is. Bound: never more copies are
// sent than a fresh plan would need whose ranks are numbered to fit the placement before.

inline constexpr double kSlack = 0.05;

// weight [experts], finite and not negative. `before` may have another number of slots, but not of ranks. Throws when
// there are fewer slots than experts.
ExpertSlots cadre_placement(std::span<const double> weight, const PlacementSizes& sizes,
                            const ExpertSlots* before = nullptr);

}  // namespace cadre
