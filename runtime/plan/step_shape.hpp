// SPDX-License-Identifier: Apache-2.0
// What the ranks of a job do in a step, by configuration and machine: the times of each stage's passes, sums and updates.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/group/topology.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/plan/machine.hpp"
#include "runtime/plan/rank_clock.hpp"
#include "runtime/schedule/program.hpp"

namespace cadre {

// By layer of the model, 1 where loads are even and for layers that are not listed.
struct LoadSkew {
  std::vector<double> work;  // load of the busiest rank of an expert-parallel group / mean load
  std::vector<double> rows;  // the same of rows that a rank gets: a token that goes to two of its experts brings one

  double work_of(int64_t layer) const { return at(work, layer); }
  double rows_of(int64_t layer) const { return at(rows, layer); }

 private:
  static double at(const std::vector<double>& values, int64_t layer) {
    return layer < static_cast<int64_t>(values.size()) ? values[static_cast<size_t>(layer)] : 1.0;
  }
};

// `counts` of each mixture layer [experts], for `layers` of the model, whose tokens take `top_k` experts each, with experts cut
// over `ranks` in equal runs. `sharing` ranks at a time compute rows of each other's experts (ranks_that_share). Experts are
// taken to be chosen independently of each other.
LoadSkew skew_of(const std::vector<int>& layers, const std::vector<std::vector<double>>& counts, int64_t top_k,
                 int ranks, int sharing = 1);

// Ranks of an expert-parallel group of so many that are on one host and share their rows (exchange.balance = host); else 1.
int ranks_that_share(const RunConfig& config, int group, int ranks_a_host);

struct StepShape {
  Program program;
  Grid grid;
  std::string strategy;  // of the exchange
  double tokens = 0.0;   // of a micro-batch on a rank
  std::vector<StageTimes> stages;
  // Of the busiest rank beyond the mean one, by stage, of a forward and a backward pass together.
  std::vector<double> skew_s;
  std::vector<double> tail_s;   // after the passes, by stage: norm, update, copies of weights
  double tail_latency_s = 0.0;  // small sums over all ranks, one after the other
  double message_s = 0.0;       // rows between stages, beside their time on the link
  ClockLink link;
  double flops_per_token = 0.0;  // forward and backward
  double tokens_of_step = 0.0;   // of all ranks
};

// Of a job whose ranks share hosts evenly. Pure; throws ErrorKind::input where the model or the grid cannot run so, or where
// model.expert_kinds = projections, whose exchanges are others.
StepShape shape_step(const RunConfig& config, const Topology& topology, const Machine& machine,
                     const LoadSkew& skew = {});

}  // namespace cadre
