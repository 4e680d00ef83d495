// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/group/topology.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/plan/machine.hpp"
#include "runtime/plan/predict_step.hpp"

namespace cadre {

struct GridSearch {
  RunConfig config;  // but for its grid, schedule, exchange, micro-batches and recomputing
  Machine machine;
  Topology topology;
  std::string loads;                 // as --loads
  double limit_gib = 0;              // of a rank; 0: none
  size_t wanted = 8;                 // of the fastest
  bool exhaustive = false;           // simulates all, also those that can be none of the fastest
  bool keeps_micro_batches = false;  // else from a fourth of those of `config` to four times as many
};

struct GridCandidate {
  RunConfig config;
  StepPrediction step;
  std::string strategy;
  size_t bytes = 0;  // of the rank that needs most
};

struct FoundGrids {
  std::vector<GridCandidate>
      fastest;          // the fastest first; of equal ones that with fewer rows, then with smaller groups of experts
  int64_t fitting = 0;  // grids, schedules and micro-batches that can run and fit
  int64_t too_large = 0;
  int64_t simulated = 0;
};

// Each with the least recomputing that fits, since all of it takes time; where some is needed, also with gradients shared out, which
// travel more often then. Does not simulate what least_step_s() says is slower than
// the fastest that are wanted; the result is the same. Throws ErrorKind::input as skew_of_loads does.
FoundGrids search_grids(const GridSearch& search);

}  // namespace cadre
