// SPDX-License-Identifier: Apache-2.0
// What a verified program takes when its ops cost what a Cost says and its messages nothing.
#pragma once

#include "runtime/schedule/walk.hpp"

namespace cadre {

struct Simulation {
  double makespan = 0;
  std::vector<double> idle;              // of each rank, of the makespan
  std::vector<std::vector<Span>> spans;  // of each op
};

Simulation simulate(const Program& program, const Costs& costs, Sends sends = Sends::eager);
inline Simulation simulate(const Program& program, const Cost& cost, Sends sends = Sends::eager) {
  return simulate(program, equal_costs(program, cost), sends);
}

}  // namespace cadre
