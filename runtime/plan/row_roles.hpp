// SPDX-License-Identifier: Apache-2.0
// Which stages and rows of a pipeline are alike, so that a plan is made once for all of them. Pure.
#pragma once

#include <compare>
#include <vector>

#include "comm/group/topology.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/parallel/process_groups.hpp"
#include "runtime/schedule/program.hpp"

namespace cadre {

// Stages with equal roles have parameters of the same shapes on the same ranks of their rows, and the same passes.
struct StageRole {
  bool is_first = false;
  bool is_last = false;
  int num_rows = 1;         // that hold the stage
  std::vector<int> layers;  // what each is like

  auto operator<=>(const StageRole&) const = default;
};

StageRole role_of(const RunConfig& config, const PipelineRoutes& routes, const StagePlace& place);

// Rows whose first ranks need, among them, as much memory as any first rank of a row: of rows that hold the same the one that
// keeps most micro-batches. Ascending.
std::vector<int> rows_to_plan(const RunConfig& config, const Program& program);

// Bytes that the first rank of some row needs at least: values and gradients, where these are not shared out, of its matrices in fp32, without embeddings; and of
// each micro-batch that it keeps [T,H] of each layer, and two more where rows come from other ranks. 0 where experts differ or
// weights are fixed.
double least_bytes(const RunConfig& config, const Grid& grid, const Program& program);

}  // namespace cadre
