// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/optimizer_shards.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

namespace cadre {
namespace {

// The ranks that hold a stage, or of them those that hold the same experts as `rank`, ascending.
std::vector<int> holders_of(int stage, Placement placement, const PipelineRoutes& routes, const Grid& grid, int rank) {
  const std::vector<int> rows = routes.rows_of(stage);
  std::vector<int> ranks;
  for (int other = 0; other < grid.num_ranks(); ++other) {
    const bool same_experts = grid.expert_rank(other) == grid.expert_rank(rank);
    if (std::ranges::binary_search(rows, grid.stage(other)) && (placement == Placement::shared || same_experts)) {
      ranks.push_back(other);
    }
  }
  return ranks;
}

}  // namespace

std::vector<int> share_out(const std::vector<int64_t>& sizes, std::vector<int64_t>& kept) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](size_t i) { return sizes[i]; });
  using Rank = std::pair<int64_t, int>;  // what it keeps; the first of those that keep least comes first
  std::priority_queue<Rank, std::vector<Rank>, std::greater<>> ranks;
  for (size_t rank = 0; rank < kept.size(); ++rank) ranks.emplace(kept[rank], static_cast<int>(rank));
  std::vector<int> owners(sizes.size());
  for (const size_t i : order) {
    const int least = ranks.top().second;
    ranks.pop();
    kept[static_cast<size_t>(least)] += sizes[i];
    ranks.emplace(kept[static_cast<size_t>(least)], least);
    owners[i] = least;
  }
  return owners;
}

OptimizerShards::OptimizerShards(Model& model, const PipelineRoutes& routes, const Grid& grid, int rank, bool sharded)
    : sharded_(sharded) {
  for (const auto& stage : model.stages()) {
    for (const Placement placement : {Placement::shared, Placement::expert}) {
      const std::vector<int> ranks = holders_of(stage->place().index, placement, routes, grid, rank);
      if (ranks.size() > 1) share_out_stage(*stage, placement, ranks, rank);
    }
  }
}

void OptimizerShards::share_out_stage(Stage& stage, Placement placement, const std::vector<int>& ranks, int rank) {
  const auto me = static_cast<int>(std::ranges::find(ranks, rank) - ranks.begin());
  std::vector<int64_t> kept(ranks.size());
  std::vector<const Parameter*> held;
  std::vector<int64_t> sizes;
  stage.each_parameter([&](const Parameter& parameter) {
    if (parameter.placement != placement || parameter.holders.size() > 1) return;
    if (&parameter == stage.embedding_table() || &parameter == stage.embedding_copy()) {
      // The first row of the pipeline and the last one add up what they have of it, rank by rank.
      owned_[&parameter] = {0, me == 0};
      kept[0] += parameter.value.numel();
      return;
    }
    held.push_back(&parameter);
    sizes.push_back(parameter.value.numel());
  });
  const std::vector<int> owners = share_out(sizes, kept);
  for (size_t i = 0; i < held.size(); ++i) owned_[held[i]] = {owners[i], owners[i] == me};
}

std::optional<int> OptimizerShards::owner(const Parameter& parameter) const {
  const auto found = owned_.find(&parameter);
  return found == owned_.end() ? std::nullopt : std::optional(found->second.owner);
}

}  // namespace cadre
