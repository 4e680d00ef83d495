// SPDX-License-Identifier: Apache-2.0
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
#pragma once

#include <span>

#include "runtime/placement/expert_slots.hpp"

namespace cadre {

inline constexpr double kSlack = 0.05;

// weight [experts], finite and not negative. `before` may have another number of slots, but not of ranks. Throws when
// there are fewer slots than experts.
ExpertSlots cadre_placement(std::span<const double> weight, const PlacementSizes& sizes,
                            const ExpertSlots* before = nullptr);

}  // namespace cadre
