// SPDX-License-Identifier: Apache-2.0
// Plans one layer under one set of rules, with each expert at most once on a rank: afresh, or on from a placement before.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "runtime/placement/arrangement.hpp"

namespace cadre {

// Two peaks closer than this, relatively, are the same but for rounding.
inline constexpr double kSamePeak = 1e-12;

class LayerPlanner {
 public:
  // `groups_on_nodes`: each group on one node, equally many on each; sizes must divide as eplb needs them.
  LayerPlanner(std::span<const double> weight, const PlacementSizes& sizes, bool groups_on_nodes);
  LayerPlanner(const LayerPlanner&) = delete;
  LayerPlanner& operator=(const LayerPlanner&) = delete;

  // From copies of busy experts spread anew and from each of `others`, improved until a peak is `enough`, or else the best
  // of all. Others that break the rules are left out of account. With groups on nodes, `homes_from` says which.
  ExpertSlots fresh(std::span<const ExpertSlots> others, const ExpertSlots* homes_from, double enough) const;

  // From the placement before in small steps, until the peak is at most `goal` or no step helps. Experts that `before`
  // does not keep on their node go to the node that they have in `plan`.
  ExpertSlots onward(const ExpertSlots& before, const ExpertSlots& plan, double goal) const;

  // The plan with its ranks numbered so that much of it is where it was before: node by node, then rank by rank, those that
  // have most in common first.
  ExpertSlots renumbered(const ExpertSlots& plan, const ExpertSlots& before) const;

 private:
  using Homes = std::vector<int>;  // the node of each expert; empty: anywhere

  // None where the slots break the rules.
  std::optional<Homes> homes_for(const ExpertSlots& slots) const;
  Arrangement spread(const Homes& homes) const;
  void add_copies(std::vector<int>& copies, int slots, int most) const;
  Arrangement taken_over(const ExpertSlots& slots, const Homes& homes, const ExpertSlots* before) const;
  double good_enough(const Homes& homes) const;

  PlacementSizes sizes_;
  bool grouped_;
  ArrangementRules rules_;
};

}  // namespace cadre
