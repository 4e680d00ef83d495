// SPDX-License-Identifier: Apache-2.0
// A placement of one layer while it is being improved: who holds what, how loaded each rank is, and steps that lower the
// load of the busiest rank. An expert is on a rank at most once.
#pragma once

#include <span>
#include <vector>

#include "runtime/placement/expert_slots.hpp"

namespace cadre {

// What every arrangement of one layer has in common.
struct ArrangementRules {
  std::span<const double> weight;  // [experts]
  std::vector<int> first_slot;     // [ranks + 1]
  std::vector<int> node_of_rank;   // [ranks]

  int num_experts() const { return static_cast<int>(weight.size()); }
  int num_ranks() const { return static_cast<int>(first_slot.size()) - 1; }
  int room(int rank) const { return first_slot[rank + 1] - first_slot[rank]; }
};

class Arrangement {
 public:
  // `home` [experts]: the node that an expert must stay on; empty: any. `before`: where copies cost nothing to be; may be
  // null. Both rules and `before` must outlive it.
  Arrangement(const ArrangementRules& rules, std::vector<int> home, const ExpertSlots* before);

  bool may_hold(int rank, int expert) const { return !holds(rank, expert) && has_room(rank) && at_home(rank, expert); }
  bool has_room(int rank) const { return static_cast<int>(experts_of_[rank].size()) < rules_->room(rank); }
  bool holds(int rank, int expert) const { return holds_[place(rank, expert)] != 0; }
  bool at_home(int rank, int expert) const { return home_.empty() || home_[expert] == rules_->node_of_rank[rank]; }
  int copies(int expert) const { return static_cast<int>(ranks_of_[expert].size()); }
  double share(int expert) const { return rules_->weight[expert] / copies(expert); }
  double peak() const;

  void add(int rank, int expert);
  void remove(int rank, int expert);

  // Gives every expert without a copy one, on the least loaded rank that can take it; makes room where there is none.
  void complete();
  // Fills empty slots with copies, as far as that makes no rank busier than the busiest is.
  void fill();
  // Moves, swaps and copies, each of which lowers the load of the busiest rank by as much as it can for what it moves,
  // until the peak is at most `goal` or no step helps.
  void improve(double goal);

  // What was in a slot of `before` keeps it.
  ExpertSlots slots() const;

 private:
  struct Step;
  size_t place(int rank, int expert) const { return static_cast<size_t>(rank) * rules_->weight.size() + expert; }
  void weigh_anew(int expert, double change);
  void consider_swaps(int busy, int expert, int rank, Step& best) const;
  void consider_copies(int busy, int expert, int rank, Step& best) const;
  double peak_after_copy(int expert, int rank, int replaced) const;
  int cost(int rank, int expert) const { return before_ == nullptr || was_[place(rank, expert)] != 0 ? 0 : 1; }
  static void keep_better(const Step& step, Step& best);
  double gain_a_copy(int busy, double peak, int sent) const;
  void make_room(int rank);
  int rank_for(int expert) const;

  const ArrangementRules* rules_;
  std::vector<int> home_;
  const ExpertSlots* before_;
  std::vector<std::vector<int>> experts_of_;  // by rank
  std::vector<std::vector<int>> ranks_of_;    // by expert
  std::vector<char> holds_, was_;             // [ranks, experts]
  std::vector<double> load_;                  // by rank
};

}  // namespace cadre
