// SPDX-License-Identifier: Apache-2.0
// How long sums of gradients and gathers of values occupy a rank's links, as runtime/parallel/gradient_reduction moves them.
#pragma once

#include <vector>

#include "comm/group/grid.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/plan/bucket_shares.hpp"
#include "runtime/plan/machine.hpp"
#include "runtime/plan/rank_clock.hpp"

namespace cadre {

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
