// SPDX-License-Identifier: Apache-2.0
// Who computes the rows of busy experts where the ranks of a host can read each other's weights: a pure function of the rows
// that each source has for each expert. Rows of an expert are cut, in the order of (source rank, token), over ranks of its host.
// Example, 2 ranks of one host, experts 0 1 on rank 0 and 2 3 on rank 1, tile 1
//
//   rows of the experts   10 2 | 3 1     rank 0 has 12 rows, rank 1 has 4, the mean is 8
//   experts of the map    {0, 1} {0, 2, 3}
//   rows of the replicas  6 4 2 3 1      rank 0 computes the first 6 rows of expert 0, rank 1 the other 4
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/exchange/plan.hpp"

namespace cadre {

struct BalancedRows {
  ExpertMap map;              // the owners of experts, and as replicas the ranks that compute rows of them
  std::vector<int64_t> rows;  // [replicas of the map] that each computes, in the order of replicas

  bool operator==(const BalancedRows&) const = default;
};

// A rank that has at most this many rows more than the mean of its host gives none away: a cut costs the guest a read of the
// weights and the owner a sum of gradients.
int64_t balance_tile(int64_t mean_rows);

// `counts` [ranks of the group, experts]: rows by source rank. `owners` has no replicas. No rank of a host computes more than
// the mean of the ranks of that host, rounded up, plus a tile of balance_tile(), or of `tile` where that is not 0.
BalancedRows balance_rows(std::span<const int64_t> counts, const ExpertMap& owners, std::span<const int> host_of_rank,
                          int64_t tile = 0);

// The replica of balanced.map that computes each slot of `source_rank`, in the place of choose_replicas. -1 stays. Throws
// ErrorKind::peer where the slots are not those that were counted.
std::vector<int32_t> choose_balanced(std::span<const int32_t> expert_ids, const BalancedRows& balanced,
                                     std::span<const int64_t> counts, int source_rank);

// The slots of each expert, [experts]. Throws ErrorKind::input on an id outside of the map.
std::vector<int64_t> count_slots(std::span<const int32_t> expert_ids, int top_k, int num_experts);

}  // namespace cadre
