// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/process_groups.hpp"

#include <set>
#include <utility>

namespace cadre {

std::vector<StagePlace> PipelineRoutes::stages_of(int row) const {
  std::set<int> stages;
  for (const std::vector<int>& route : routes) {
    for (int stage = 0; stage < num_stages(); ++stage) {
      if (route[static_cast<size_t>(stage)] == row) stages.insert(stage);
    }
  }
  std::vector<StagePlace> places;
  for (const int stage : stages) places.push_back(place_of(stage));
  return places;
}

std::vector<int> PipelineRoutes::rows_of(int stage) const {
  std::set<int> rows;
  for (const std::vector<int>& route : routes) rows.insert(route[static_cast<size_t>(stage)]);
  return {rows.begin(), rows.end()};
}

PipelineRoutes pipeline_routes(std::vector<std::vector<int>> routes, const ParallelConfig& parallel) {
  return {std::move(routes), parallel.stages == "balanced" ? StageCut::balanced : StageCut::even};
}

bool is_first_holder(const Parameter& parameter, int stage, const PipelineRoutes& routes, const Grid& grid, int rank) {
  const int holders = parameter.placement == Placement::expert ? grid.expert : 1;
  const bool owned =
      !parameter.is_copy && (parameter.holders.empty() || parameter.holders.front() == grid.expert_rank(rank));
  return routes.rows_of(stage).front() == grid.stage(rank) && grid.data_rank(rank) < holders && owned;
}

ProcessGroups::ProcessGroups(Communicator ranks, PipelineRoutes stage_routes, const ParallelConfig& parallel)
    : world(std::move(ranks)),
      routes(std::move(stage_routes)),
      grid(Grid::make(world.size(), static_cast<int>(parallel.pipeline), static_cast<int>(parallel.expert))),
      pipeline(world.split(grid.pipeline_group(world.rank()), world.rank(), "pipeline")) {}

}  // namespace cadre
