// SPDX-License-Identifier: Apache-2.0
// How long sums of gradients and gathers of values occupy a rank's links, as runtime/parallel/gradient_reduction moves them.
#pragma once

#include <vector>

#include "comm/group/topology.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/parallel/process_groups.hpp"
#include "runtime/plan/machine.hpp"
#include "runtime/plan/rank_clock.hpp"

namespace cadre {

// What of each bucket of gradients belongs to which rank, by the rules of runtime/parallel, without the memory of a model.

// Parameters of a bucket, shared ones or experts, that the same ranks hold. In elements.
struct BucketShare {
  double elements = 0.0;  // that a rank holds
  std::vector<double>
      of_rank;  // of them, by rank of the group: those whose optimiser state it keeps where state is sharded

  double longest() const;
};

struct StageShares {
  int shared_ranks = 1;             // that hold the stage
  int expert_ranks = 1;             // of them, those that hold the same experts
  std::vector<BucketShare> shared;  // by bucket
  std::vector<BucketShare> expert;
};

// By stage, for the ranks with the first experts. Pure.
std::vector<StageShares> bucket_shares(const RunConfig& config, const Grid& grid, const PipelineRoutes& routes);

struct StageTraffic {
  std::vector<BucketTraffic> buckets;
  double tail_s = 0.0;  // norm, update and copies of weights of the rank that keeps most
};

// Of the rank that sends or gets most. Hosts have `ranks_a_host` ranks. Pure.
StageTraffic traffic_of_stage(const RunConfig& config, const Grid& grid, int ranks_a_host, const Machine& machine,
                              const StageShares& shares);

// Bytes that a rank sends of one piece of a sum over `ranks`.
double bytes_of_piece(int ranks);

}  // namespace cadre
