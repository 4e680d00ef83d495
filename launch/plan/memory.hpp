// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "comm/group/topology.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/train/memory_plan.hpp"

namespace cadre {

struct RankPlan {
  int rank = 0;
  MemoryPlan plan;
};

// The largest plan over the first rank of each row of the pipeline. Pure.
RankPlan plan_of_largest(const RunConfig& config, const Topology& topology);

// Bytes that it needs at least, much faster where micro-batches are long: from the plan of a short one, in which experts may be up to
// a sixth busier by chance. 0 where they are not long. Pure.
double least_bytes_of_largest(const RunConfig& config, const Topology& topology);

}  // namespace cadre
