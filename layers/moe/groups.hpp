// SPDX-License-Identifier: Apache-2.0
// Group-limited routing (DeepSeek-V2, arXiv 2405.04434, section 2.2.2; V3, arXiv 2412.19437, section 2.1.2): experts lie in
// groups of neighbours, and a token may choose from the best groups only. With as many groups as hosts a token visits
// at most `kept` of them, whatever the number of ranks.
#pragma once

#include <cstdint>

#include "layers/tensor/tensor.hpp"

namespace cadre {

enum class GroupScore : uint8_t {
  best,            // V2: the largest score of the group
  sum_of_best_two  // V3
};

struct GroupLimit {
  int groups = 1;  // divides the experts
  int kept = 1;    // of them, for each token
  GroupScore score = GroupScore::best;

  bool limits() const { return kept < groups; }
};

// eligible[T,E] = scores + bias where the expert's group is kept, else -infinity, so that no biased score of another
// group, however low, loses against one of these. bias [E] or undefined. Ties go to the lower group. A NaN stays.
void limit_to_groups(const GroupLimit& limit, const Tensor& scores, const Tensor& bias, const Tensor& eligible);

}  // namespace cadre
