// SPDX-License-Identifier: Apache-2.0
// Walks the lists of all ranks with a clock for each, as an executor would whose messages take no time.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "runtime/schedule/program.hpp"

namespace cadre {

// What the compute ops of a chunk cost, in any unit. The defaults are the usual unit of papers.
struct Cost {
  double forward = 1;
  double backward = 2;
  double backward_input = 1;
  double backward_weight = 1;
  double overlapped = 3;
};

double cost_of(const Cost& cost, const Op& op);  // 0 for messages

// Of each rank.
using Costs = std::vector<Cost>;
inline Costs equal_costs(const Program& program, const Cost& cost = {}) {
  return Costs(static_cast<size_t>(program.num_ranks), cost);
}

// Whether a send ends at once or only when its receive is posted. Transports do the first with small messages and the
// second with large ones, so a program must run both ways.
enum class Sends { eager, rendezvous };

struct Span {
  double start = 0;
  double end = 0;
};

struct Walk {
  // Of the ops that ran, by rank and position. A receive spans from its posting to the arrival of its rows.
  std::vector<std::vector<Span>> spans;
  // Where a rank waits forever, by rank; size of its list when it does not.
  std::vector<size_t> stopped_at;

  bool finished(const Program& program) const;
};

// When the op at a position of a rank's list ends, which begins at `start`; of a send, when its rows have been sent. Called once
// for each op but receives, for each rank in the order of its list.
using RunOp = std::function<double(size_t rank, size_t position, double start)>;
// Rows arrive `message` after they have been sent and their receive is posted.
Walk walk(const Program& program, const RunOp& run, Sends sends, double message = 0);

// Each message of the program may be sent and received once at most.
Walk walk(const Program& program, const Costs& costs, Sends sends);

// What a verified program takes when its ops cost what `costs` says and its messages nothing.
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
