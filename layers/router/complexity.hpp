// SPDX-License-Identifier: Apache-2.0
// How many experts a token visits, by how hard its request is: as the request says, or guessed from its words.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "layers/router/task.hpp"

namespace cadre {

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
