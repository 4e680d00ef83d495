// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/expert_map.hpp"

#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

ExpertMap::ExpertMap(std::vector<int> owner, int num_ranks)
    : owner_(std::move(owner)), experts_of_(static_cast<size_t>(num_ranks)) {
  for (int expert = 0; expert < num_experts(); ++expert) {
    std::vector<int>& experts = experts_of_[static_cast<size_t>(this->owner(expert))];
    local_index_.push_back(static_cast<int>(experts.size()));
    experts.push_back(expert);
  }
}

ExpertMap ExpertMap::contiguous(int num_experts, int num_ranks) {
  CADRE_CHECK(num_experts >= 1 && num_ranks >= 1, fmt::format("{} experts on {} ranks", num_experts, num_ranks),
              "both must be at least 1");
  const int base = num_experts / num_ranks;
  const int num_larger = num_experts % num_ranks;  // the first ranks hold one more
  std::vector<int> owner;
  for (int rank = 0; rank < num_ranks; ++rank) {
    owner.insert(owner.end(), static_cast<size_t>(base + (rank < num_larger ? 1 : 0)), rank);
  }
  return ExpertMap(std::move(owner), num_ranks);
}

}  // namespace cadre
