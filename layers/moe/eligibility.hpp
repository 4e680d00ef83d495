// SPDX-License-Identifier: Apache-2.0
// Which experts a token may choose from. What it may not is -infinity, so that no biased score of another expert,
// however low, loses against it.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/moe/lane_context.hpp"

namespace cadre {

// Group-limited routing (DeepSeek-V2, arXiv 2405.04434, section 2.2.2; V3, arXiv 2412.19437, section 2.1.2): experts lie in
// groups of neighbours, as even as possible, and a token may choose from the best groups only. With as many groups as
// hosts a token visits at most `kept` of them, whatever the number of ranks.
struct GroupLimit {
  int groups = 1;
  int kept = 1;    // of them, for each token
  int summed = 1;  // the score of a group is the sum of so many of its best: 1 in V2, 2 in V3

  bool limits() const { return kept < groups; }
};

// An expert that works only where a condition holds; the conditions of one expert must hold together.
struct ExpertCondition {
  enum class Kind : uint8_t { task, position_below, position_from };
  int expert = 0;
  Kind kind = Kind::task;
  int64_t value = 0;  // the task, or a position within the sequence
};

struct EligibilityOptions {
  GroupLimit groups = {};
  GroupLimit nodes = {};  // the same again, for the hosts that experts are thought to be on
  std::vector<ExpertCondition> conditions = {};

  bool limits() const { return groups.limits() || nodes.limits() || !conditions.empty(); }
};

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
