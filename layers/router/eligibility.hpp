// SPDX-License-Identifier: Apache-2.0
// Which experts a token may choose from. What it may not is -infinity, so that no biased score of another expert,
// however low, loses against it.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/router/lane_context.hpp"
#include "layers/router/options.hpp"

namespace cadre {

// choice [T,E]: -infinity where the expert's group is not kept. Ties go to the lower group. A NaN stays.
void limit_to_groups(const GroupLimit& limit, const Tensor& choice);
// choice [T,E]: -infinity where a condition of the expert does not hold.
void limit_to_conditions(const std::vector<ExpertCondition>& conditions, const TokenFacts& tokens,
                         const Tensor& choice);
// All of it.
void limit_to_eligible(const EligibilityOptions& options, const TokenFacts& tokens, const Tensor& choice);

// Group g of experts 0 .. num_experts cut in `groups`: the first and how many. 10 in 4 are 3 3 2 2.
struct ExpertRange {
  int64_t first;
  int64_t count;
};
ExpertRange expert_group(int64_t num_experts, int groups, int g);

}  // namespace cadre
