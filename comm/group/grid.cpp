// SPDX-License-Identifier: Apache-2.0
#include "comm/group/grid.hpp"

#include "comm/base/check.hpp"

namespace cadre {

Grid Grid::make(int num_ranks, int expert) {
  const int expert_size = expert == 0 ? num_ranks : expert;
  CADRE_CHECK(expert_size >= 1 && expert_size <= num_ranks && num_ranks % expert_size == 0,
              fmt::format("parallel.expert = {} does not divide the {} ranks of this job", expert, num_ranks),
              "choose a divisor of the number of ranks, or 0 for all of them");
  return {num_ranks, expert_size};
}

std::string Grid::describe() const { return fmt::format("data {} x expert {}", data, expert); }

}  // namespace cadre
