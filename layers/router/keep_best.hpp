// SPDX-License-Identifier: Apache-2.0
// An exact selection over all ranks of a group: of the candidates of each column, which are spread over the ranks, keep
// the `limit` best. A radix search for the last key that is kept, in as many small reductions as its distinct digits
// need; no candidate travels, and the result does not depend on who holds which.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layers/router/lane_context.hpp"

namespace cadre {

// A larger key is better; equal keys go to the lower token. A token is a candidate of a column at most once.
struct Candidate {
  int32_t column = 0;
  uint64_t key = 0;
  int64_t token = 0;  // number in the global batch
};

// A key that sorts as the number does.
uint64_t sort_key(double number);

// Which of this rank's candidates are kept. limits [columns], the same on all ranks. Collective over the lane's data group.
Task<std::vector<uint8_t>> keep_best(LaneContext& ctx, std::vector<Candidate> candidates, std::vector<int64_t> limits);

}  // namespace cadre
