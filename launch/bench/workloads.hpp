// SPDX-License-Identifier: Apache-2.0
// Routings to measure exchanges with, from balanced to badly skewed. W0 ... W7 by the names that benchmarks of the field
// use. Experts of a token are drawn without replacement with the probabilities of the workload (Gumbel top-k, Kool et
// al. 2019), from numbers keyed by rank and token.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "comm/exchange/expert_map.hpp"

namespace cadre {

enum class Workload : uint8_t {
  balanced,          // W0
  hot_expert_set,    // W1: an eighth of the experts is 16 times as likely
  hot_rank,          // W2: those of rank 0 are
  spread_hot,        // W3: one expert of each rank is
  ragged_source,     // W4: rank 0 has no tokens, the last has most
  zero_expert_rank,  // W5: no token selects the experts of the last rank
  rotating_hotspot,  // W6: the hot rank moves with every iteration
  burst,             // W7: every fourth iteration has all tokens, the others a quarter
};
inline constexpr int kNumWorkloads = 8;

std::string_view name_of(Workload workload);     // "W0 balanced"
Workload workload_named(std::string_view name);  // "W0"

struct Draw {
  int64_t tokens;  // of a rank, at most
  int top_k;
  int rank;
  int64_t iteration;
};

// [tokens, top_k] expert ids of one rank.
std::vector<int32_t> draw_routing(Workload workload, const Draw& draw, const ExpertMap& map);

}  // namespace cadre
