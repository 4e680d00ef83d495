// SPDX-License-Identifier: Apache-2.0
// Which ranks of an expert-parallel group hold which expert: a pure value. An expert on several ranks has replicas, and
// each takes its share of the expert's rows (choose_replicas in plan.hpp). Example, 3 experts on 2 ranks, expert 1 on both:
//
//   experts_of    {0, 1} {1, 2}
//   replica       0    1    2    3      by expert, then rank
//   expert, rank  0,0  1,0  1,1  2,1    first_replica = {0, 1, 3, 4}
#pragma once

#include <span>
#include <utility>
#include <vector>

namespace cadre {

class ExpertMap {
 public:
  // Neighbouring experts together, as even as possible: 10 experts on 4 ranks are 3 3 2 2. Fewer experts than ranks
  // leave ranks without one.
  static ExpertMap contiguous(int num_experts, int num_ranks);
  // The experts of each rank, in any order. One that is named twice on a rank lies there once and takes two shares. Throws
  // where an expert is on no rank.
  static ExpertMap of(int num_experts, const std::vector<std::vector<int>>& experts_of);

  int num_experts() const { return static_cast<int>(first_replica_.size()) - 1; }
  int num_ranks() const { return static_cast<int>(experts_of_.size()); }
  // Global ids, ascending, each once.
  std::span<const int> experts_of(int rank) const { return experts_of_[static_cast<size_t>(rank)]; }

  // Shares of rows, of all experts: as many as experts where none has replicas; replica e is then expert e.
  int num_replicas() const { return static_cast<int>(replica_rank_.size()); }
  int first_replica(int expert) const { return first_replica_[static_cast<size_t>(expert)]; }
  int replica_rank(int replica) const { return replica_rank_[static_cast<size_t>(replica)]; }
  // Its place among the experts of its rank.
  int replica_index(int replica) const { return replica_index_[static_cast<size_t>(replica)]; }

  // The ranks that hold the expert, ascending; the first owns it: what is to be done once for an expert is done there.
  std::vector<int> holders(int expert) const;
  int owner(int expert) const { return replica_rank(first_replica(expert)); }
  // The place of the expert among those of its owner.
  int local_index(int expert) const { return replica_index(first_replica(expert)); }

  bool operator==(const ExpertMap&) const = default;

 private:
  explicit ExpertMap(std::vector<std::vector<int>> experts_of) : experts_of_(std::move(experts_of)) {}

  std::vector<std::vector<int>> experts_of_;
  std::vector<int> first_replica_;  // [experts + 1]
  std::vector<int> replica_rank_;
  std::vector<int> replica_index_;
};

}  // namespace cadre
