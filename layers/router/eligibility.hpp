// SPDX-License-Identifier: Apache-2.0
// Which experts a token may choose from. What it may not is -infinity, so that no biased score of another expert,
// however low, loses against it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "layers/router/lane_context.hpp"
#include "layers/router/options.hpp"
#include "layers/router/task.hpp"

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

// How many experts a token visits, by how hard its request is: as the request says, or guessed from its words.

enum class Complexity : uint8_t { simple, medium, complex, critical };

// The defaults are 1/8 to 1/2 of eight experts.
struct ComplexityTable {
  std::array<int64_t, 4> experts = {1, 2, 3, 4};  // by Complexity
  int64_t most = 4;                               // whatever the request
};

// "simple", "medium", "complex" or "critical". Throws on anything else.
bool is_complexity(std::string_view name);
Complexity complexity_named(std::string_view name);

// One step above simple for each of these: the text has a match of a task other than GENERAL; it has matches of two such
// tasks; it has 200 characters or more.
Complexity recognise_complexity(std::string_view text, const TaskOptions& options);

// The top-k of a request: that of the table, at most `table.most` and `num_experts`.
int64_t experts_for(Complexity complexity, const ComplexityTable& table, int64_t num_experts);

}  // namespace cadre
