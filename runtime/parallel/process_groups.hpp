// SPDX-License-Identifier: Apache-2.0
// The process groups of one rank: its place in the grid, which stages its row holds, and the ranks of its pipeline.
#pragma once

#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "layers/model/stage.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// Where the stages of a model are: routes[k][stage] is the row of the grid that holds the stage for the k-th part of the
// micro-batches, as in Program. A pure value.
struct PipelineRoutes {
  std::vector<std::vector<int>> routes = {{0}};
  StageCut cut = StageCut::even;

  int num_stages() const { return static_cast<int>(routes.front().size()); }
  StagePlace place_of(int stage) const { return {stage, num_stages(), cut}; }
  // The stages that a row holds, ascending.
  std::vector<StagePlace> stages_of(int row) const;
  // The rows that hold a stage, ascending.
  std::vector<int> rows_of(int stage) const;
};

// As the configuration cuts the model.
PipelineRoutes pipeline_routes(std::vector<std::vector<int>> routes, const ParallelConfig& parallel);

// Whether `rank` is the first of the ranks that hold `parameter` of `stage`: the one that saves it, and counts it in sums.
bool is_first_holder(const Parameter& parameter, int stage, const PipelineRoutes& routes, const Grid& grid, int rank);

struct ProcessGroups {
  // Collective over `ranks`.
  ProcessGroups(Communicator ranks, PipelineRoutes stage_routes, const ParallelConfig& parallel);

  int row() const { return grid.stage(world.rank()); }
  int data_rank() const { return grid.data_rank(world.rank()); }
  int expert_rank() const { return grid.expert_rank(world.rank()); }

  Communicator world;
  PipelineRoutes routes;
  Grid grid;
  Communicator pipeline;  // the ranks that pass micro-batches on to each other; a rank of it is a row of the grid
};

}  // namespace cadre
