// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/host_balance.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr int64_t kLeastTile = 16;
constexpr int64_t kTilesOfMean = 50;

// The ranks of one host, and what each of them computes of which expert.
class HostLoads {
 public:
  HostLoads(std::span<const int64_t> expert_rows, const ExpertMap& owners, std::vector<int> ranks)
      : owners_(owners), ranks_(std::move(ranks)), kept_(expert_rows.begin(), expert_rows.end()) {
    for (const int rank : ranks_) {
      int64_t rows = 0;
      for (const int expert : owners.experts_of(rank)) rows += expert_rows[static_cast<size_t>(expert)];
      loads_.push_back(rows);
    }
    total_ = std::accumulate(loads_.begin(), loads_.end(), int64_t{0});
  }

  // Calls give(expert, rank, rows) for each piece that `rank` computes for the owner of the expert. Each piece uses up the
  // surplus of a rank, the room of a rank or an expert. An owner keeps no remnant of less than a tile where the other rank can
  // take it: its products would read all weights for few rows.
  template <class Give>
  void balance(int64_t wanted_tile, const Give& give) {
    const auto count = static_cast<int64_t>(ranks_.size());
    const int64_t mean = (total_ + count - 1) / count;
    const int64_t tile = wanted_tile > 0 ? wanted_tile : balance_tile(mean);
    const auto is_even = [&](int64_t rows) { return rows * count <= total_ + tile * count; };
    while (true) {
      const auto busiest = std::ranges::max_element(loads_);
      if (is_even(*busiest)) return;
      const auto idlest = std::ranges::min_element(loads_);
      const int expert = largest_expert(ranks_[static_cast<size_t>(busiest - loads_.begin())]);
      int64_t& kept = kept_[static_cast<size_t>(expert)];
      int64_t piece = std::min({*busiest - mean, mean - *idlest, kept});
      if (kept - piece < tile && is_even(*idlest + kept)) piece = kept;
      kept -= piece;
      *busiest -= piece;
      *idlest += piece;
      give(expert, ranks_[static_cast<size_t>(idlest - loads_.begin())], piece);
    }
  }

 private:
  int largest_expert(int rank) const {
    const std::span<const int> experts = owners_.experts_of(rank);
    return *std::ranges::max_element(experts, {}, [this](int expert) { return kept_[static_cast<size_t>(expert)]; });
  }

  const ExpertMap& owners_;
  std::vector<int> ranks_;
  std::vector<int64_t> loads_;
  std::vector<int64_t> kept_;  // [experts] rows that the owner computes
  int64_t total_ = 0;
};

}  // namespace

int64_t balance_tile(int64_t mean_rows) { return std::max(kLeastTile, mean_rows / kTilesOfMean); }

BalancedRows balance_rows(std::span<const int64_t> counts, const ExpertMap& owners, std::span<const int> host_of_rank,
                          int64_t tile) {
  const auto num_experts = static_cast<size_t>(owners.num_experts());
  const auto num_ranks = static_cast<size_t>(owners.num_ranks());
  CADRE_ASSERT(counts.size() == num_ranks * num_experts && host_of_rank.size() == num_ranks);
  CADRE_ASSERT(owners.num_replicas() == owners.num_experts());
  std::vector<int64_t> expert_rows(num_experts, 0);
  for (size_t i = 0; i < counts.size(); ++i) expert_rows[i % num_experts] += counts[i];

  std::vector<std::vector<std::pair<int, int64_t>>> given(num_experts);  // rank, rows
  const int num_hosts = std::ranges::max(host_of_rank) + 1;
  for (int host = 0; host < num_hosts; ++host) {
    std::vector<int> ranks;
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      if (host_of_rank[rank] == host) ranks.push_back(static_cast<int>(rank));
    }
    HostLoads(expert_rows, owners, std::move(ranks)).balance(tile, [&](int expert, int rank, int64_t rows) {
      given[static_cast<size_t>(expert)].emplace_back(rank, rows);
    });
  }

  std::vector<std::vector<int>> experts_of;
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    const std::span<const int> own = owners.experts_of(static_cast<int>(rank));
    experts_of.emplace_back(own.begin(), own.end());
  }
  for (size_t expert = 0; expert < num_experts; ++expert) {
    std::vector<std::pair<int, int64_t>>& pieces = given[expert];
    for (const auto& [rank, rows] : pieces) {
      expert_rows[expert] -= rows;
      experts_of[static_cast<size_t>(rank)].push_back(static_cast<int>(expert));
    }
    pieces.emplace_back(owners.owner(static_cast<int>(expert)), expert_rows[expert]);
    std::ranges::sort(pieces);
  }
  BalancedRows balanced = {ExpertMap::of(owners.num_experts(), experts_of), {}};
  for (const auto& pieces : given) {
    for (const auto& [rank, rows] : pieces) balanced.rows.push_back(rows);
  }
  CADRE_ASSERT(balanced.rows.size() == static_cast<size_t>(balanced.map.num_replicas()));
  return balanced;
}

std::vector<int32_t> choose_balanced(std::span<const int32_t> expert_ids, const BalancedRows& balanced,
                                     std::span<const int64_t> counts, int source_rank) {
  const ExpertMap& map = balanced.map;
  const auto num_experts = static_cast<size_t>(map.num_experts());
  struct Next {
    int replica;
    int64_t rows_left;  // of that replica
  };
  std::vector<Next> next;
  const auto advance = [&](Next& at, int64_t rows) {
    while (rows >= at.rows_left && at.replica + 1 < map.num_replicas()) {
      rows -= at.rows_left;
      at.rows_left = balanced.rows[static_cast<size_t>(++at.replica)];
    }
    at.rows_left -= rows;
  };
  for (size_t expert = 0; expert < num_experts; ++expert) {
    int64_t before = 0;  // rows of sources in front of this one
    for (size_t source = 0; source < static_cast<size_t>(source_rank); ++source) {
      before += counts[source * num_experts + expert];
    }
    const int first = map.first_replica(static_cast<int>(expert));
    next.push_back({first, balanced.rows[static_cast<size_t>(first)]});
    advance(next.back(), before);
  }
  std::vector<int32_t> replicas(expert_ids.begin(), expert_ids.end());
  for (int32_t& chosen : replicas) {
    if (chosen == -1) continue;
    const int expert = chosen;
    Next& at = next[static_cast<size_t>(expert)];
    advance(at, 0);  // over replicas without rows
    CADRE_CHECK_PEER(at.replica < map.first_replica(expert + 1) && at.rows_left > 0,
                     fmt::format("expert {} gets more rows than were counted", expert));
    chosen = at.replica;
    --at.rows_left;
  }
  return replicas;
}

std::vector<int64_t> count_slots(std::span<const int32_t> expert_ids, int top_k, int num_experts) {
  std::vector<int64_t> counts(static_cast<size_t>(num_experts), 0);
  for (size_t slot = 0; slot < expert_ids.size(); ++slot) {
    const int32_t expert = expert_ids[slot];
    if (expert == -1) continue;
    if (expert < 0 || expert >= num_experts) {
      refuse_expert(static_cast<int64_t>(slot) / top_k, expert, num_experts);
    }
    ++counts[static_cast<size_t>(expert)];
  }
  return counts;
}

}  // namespace cadre
