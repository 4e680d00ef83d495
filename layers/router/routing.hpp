// SPDX-License-Identifier: Apache-2.0
// What the pieces of a router hand on to each other, for the T tokens of a micro-batch on this rank:
//
//   score        x            -> logits, scores      one number for each (token, expert), differentiable
//   bias         scores       -> choice              what decides, which need not be what weighs
//   eligibility  choice       -> choice              -infinity where the token may not go
//   select       choice       -> ids                 up to `slots` experts a token
//   capacity     ids          -> ids                 -1 where the expert was full
//   weights      scores, ids  -> weights             differentiable
#pragma once

#include <cstdint>
#include <vector>

#include "layers/router/lane_context.hpp"

namespace cadre {

struct Routing {
  Tensor logits;       // [T,E], noise included; -infinity for experts that are dead
  Tensor scores;       // [T,E]
  Tensor choice;       // [T,E]
  Tensor ids;          // i32[T,slots], best first, -1 for none
  Tensor weighed_ids;  // i32[T,slots], those whose scores share the weight: `ids`, or `ids` before the capacity
  Tensor weights;      // [T,slots]

  // For losses, where a back end that routes in one pass has made them (Losses::launch_sums).
  Tensor best;        // i32[T,K], the best by scores alone
  Tensor share_sums;  // [G,E], sums of score / (sum of the token's scores) over T / G tokens in turn
  Tensor score_sums;  // [1,E], sums of scores

  std::vector<int64_t> demand;  // [E], how often this rank's tokens chose each expert
  std::vector<int64_t> counts;  // [E], of them those that the expert has room for

  int64_t num_tokens() const { return scores.dim(0); }
  int64_t num_experts() const { return scores.dim(1); }
  int64_t num_dropped() const;
};

// How often each expert occurs in ids (i32, any shape, -1 not counted).
std::vector<int64_t> count_experts(const Tensor& ids, int64_t num_experts);

// Sums over all ranks that hold tokens of this micro-batch. Collective over the lane's data group.
Task<std::vector<int64_t>> sum_over_ranks(LaneContext& ctx, std::vector<int64_t> values);

}  // namespace cadre
