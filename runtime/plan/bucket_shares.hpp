// SPDX-License-Identifier: Apache-2.0
// What of each bucket of gradients belongs to which rank, by the rules of runtime/parallel, without the memory of a model.
#pragma once

#include <vector>

#include "comm/group/grid.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/parallel/process_groups.hpp"

namespace cadre {

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

}  // namespace cadre
