// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/bucket_shares.hpp"

#include <algorithm>
#include <map>

#include "layers/model/model.hpp"
#include "runtime/parallel/expert_placement.hpp"
#include "runtime/parallel/optimizer_shards.hpp"
#include "runtime/plan/row_roles.hpp"

namespace cadre {
namespace {

BucketShare share_of(Stage& stage, int bucket, Placement placement, const OptimizerShards& shards, int ranks) {
  BucketShare share;
  share.of_rank.resize(static_cast<size_t>(ranks));
  stage.each_parameter(bucket, [&](const Parameter& parameter) {
    if (parameter.placement != placement) return;
    const auto elements = static_cast<double>(parameter.value.numel());
    share.elements += elements;
    const std::optional<int> owner = shards.owner(parameter);
    if (owner) share.of_rank[static_cast<size_t>(*owner)] += elements;
  });
  return share;
}

}  // namespace

double BucketShare::longest() const { return of_rank.empty() ? 0.0 : std::ranges::max(of_rank); }

std::vector<StageShares> bucket_shares(const RunConfig& config, const Grid& grid, const PipelineRoutes& routes) {
  std::map<StageRole, StageShares> of_role;
  for (int row = 0; row < grid.pipeline; ++row) {
    std::vector<StagePlace> places;
    for (const StagePlace& place : routes.stages_of(row)) {
      if (of_role.try_emplace(role_of(config, routes, place)).second) places.push_back(place);
    }
    if (places.empty()) continue;
    const int rank = row * grid.data;
    Model model(config.model, places, place_experts(config.model, config.parallel, grid.expert),
                grid.expert_rank(rank));
    const OptimizerShards shards(model, routes, grid, rank, /*sharded=*/true);
    for (const auto& stage : model.stages()) {
      const auto rows = static_cast<int>(routes.rows_of(stage->place().index).size());
      StageShares& shares = of_role.at(role_of(config, routes, stage->place()));
      shares.shared_ranks = grid.data * rows;
      shares.expert_ranks = grid.data / grid.expert * rows;
      for (int bucket = 0; bucket < stage->num_buckets(); ++bucket) {
        shares.shared.push_back(share_of(*stage, bucket, Placement::shared, shards, shares.shared_ranks));
        shares.expert.push_back(share_of(*stage, bucket, Placement::expert, shards, shares.expert_ranks));
      }
    }
  }
  std::vector<StageShares> all;
  for (int stage = 0; stage < routes.num_stages(); ++stage) {
    all.push_back(of_role.at(role_of(config, routes, routes.place_of(stage))));
  }
  return all;
}

}  // namespace cadre
