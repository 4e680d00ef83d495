// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/expert_map.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

ExpertMap ExpertMap::of(int num_experts, const std::vector<std::vector<int>>& experts_of) {
  CADRE_CHECK(num_experts >= 1 && !experts_of.empty(),
              fmt::format("{} experts on {} ranks", num_experts, experts_of.size()), "both must be at least 1");
  struct Share {
    int rank, index;
  };
  std::vector<std::vector<Share>> shares(static_cast<size_t>(num_experts));
  std::vector<std::vector<int>> distinct = experts_of;
  for (int rank = 0; rank < static_cast<int>(experts_of.size()); ++rank) {
    std::vector<int>& experts = distinct[rank];
    std::ranges::sort(experts);
    const auto repeated = std::ranges::unique(experts);
    experts.erase(repeated.begin(), repeated.end());
    for (const int expert : experts_of[rank]) {
      CADRE_CHECK(expert >= 0 && expert < num_experts,
                  fmt::format("expert {} on rank {}, allowed are 0 to {}", expert, rank, num_experts - 1));
      const auto index = std::ranges::lower_bound(experts, expert) - experts.begin();
      shares[expert].push_back({rank, static_cast<int>(index)});
    }
  }
  ExpertMap map(std::move(distinct));
  map.first_replica_ = {0};
  for (int expert = 0; expert < num_experts; ++expert) {
    CADRE_CHECK(!shares[expert].empty(), fmt::format("expert {} is on none of the {} ranks", expert, experts_of.size()),
                "every expert needs at least one");
    for (const auto& [rank, index] : shares[expert]) {
      map.replica_rank_.push_back(rank);
      map.replica_index_.push_back(index);
    }
    map.first_replica_.push_back(map.num_replicas());
  }
  return map;
}

ExpertMap ExpertMap::contiguous(int num_experts, int num_ranks) {
  CADRE_CHECK(num_experts >= 1 && num_ranks >= 1, fmt::format("{} experts on {} ranks", num_experts, num_ranks),
              "both must be at least 1");
  const int base = num_experts / num_ranks;
  const int num_larger = num_experts % num_ranks;  // the first ranks hold one more
  std::vector<std::vector<int>> experts_of;
  int first = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    experts_of.emplace_back(static_cast<size_t>(base + (rank < num_larger ? 1 : 0)));
    std::iota(experts_of.back().begin(), experts_of.back().end(), first);
    first += static_cast<int>(experts_of.back().size());
  }
  return of(num_experts, experts_of);
}

std::vector<int> ExpertMap::holders(int expert) const {
  std::vector<int> ranks;
  for (int replica = first_replica(expert); replica < first_replica(expert + 1); ++replica) {
    if (ranks.empty() || ranks.back() != replica_rank(replica)) ranks.push_back(replica_rank(replica));
  }
  return ranks;
}

}  // namespace cadre
