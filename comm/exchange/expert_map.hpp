// SPDX-License-Identifier: Apache-2.0
// Which rank of an expert-parallel group holds which expert: a pure value.
#pragma once

#include <span>
#include <vector>

namespace cadre {

class ExpertMap {
 public:
  // Neighbouring experts together, as even as possible: 10 experts on 4 ranks are 3 3 2 2. Fewer experts than ranks
  // leave ranks without one.
  static ExpertMap contiguous(int num_experts, int num_ranks);

  int num_experts() const { return static_cast<int>(owner_.size()); }
  int num_ranks() const { return static_cast<int>(experts_of_.size()); }
  int owner(int expert) const { return owner_[static_cast<size_t>(expert)]; }
  // The place of the expert among those of its owner.
  int local_index(int expert) const { return local_index_[static_cast<size_t>(expert)]; }
  // Global ids, ascending.
  std::span<const int> experts_of(int rank) const { return experts_of_[static_cast<size_t>(rank)]; }

  bool operator==(const ExpertMap&) const = default;

 private:
  explicit ExpertMap(std::vector<int> owner, int num_ranks);

  std::vector<int> owner_;
  std::vector<int> local_index_;
  std::vector<std::vector<int>> experts_of_;
};

}  // namespace cadre
