// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/simulate.hpp"

#include <algorithm>

#include "comm/base/check.hpp"

namespace cadre {

Simulation simulate(const Program& program, const Costs& costs, Sends sends) {
  Walk walked = walk(program, costs, sends);
  CADRE_CHECK(walked.finished(program), fmt::format("{}: the program never ends", program.name),
              "verify says which op waits");
  Simulation simulation;
  for (const auto& spans : walked.spans) {
    for (const Span& span : spans) simulation.makespan = std::max(simulation.makespan, span.end);
  }
  for (size_t rank = 0; rank < program.ops.size(); ++rank) {
    double idle = simulation.makespan;
    for (const Op& op : program.ops[rank]) idle -= cost_of(costs[rank], op);
    simulation.idle.push_back(idle);
  }
  simulation.spans = std::move(walked.spans);
  return simulation;
}

}  // namespace cadre
