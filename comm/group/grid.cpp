// SPDX-License-Identifier: Apache-2.0
#include "comm/group/grid.hpp"

#include "comm/base/check.hpp"

namespace cadre {

Grid Grid::make(int num_ranks, int pipeline, int expert) {
  CADRE_CHECK(pipeline >= 1 && num_ranks >= 1 && num_ranks % pipeline == 0,
              fmt::format("parallel.pipeline = {} does not divide the {} ranks of this job", pipeline, num_ranks),
              "choose a divisor of the number of ranks");
  const int data = num_ranks / pipeline;
  const int expert_size = expert == 0 ? data : expert;
  CADRE_CHECK(expert_size >= 1 && expert_size <= data && data % expert_size == 0,
              fmt::format("parallel.expert = {} does not divide the {} data-parallel ranks of this job", expert, data),
              "choose a divisor of that number, or 0 for all of them");
  return {pipeline, data, expert_size};
}

std::string Grid::describe() const {
  const std::string stages = pipeline > 1 ? fmt::format("pipeline {} x ", pipeline) : "";
  return stages + fmt::format("data {} x expert {}", data, expert);
}

}  // namespace cadre
