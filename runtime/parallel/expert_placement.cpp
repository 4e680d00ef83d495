// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/expert_placement.hpp"

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "comm/job/wait.hpp"
#include "layers/model/model.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/placement/plan.hpp"

namespace cadre {
namespace {

// Nothing is known of loads: the experts in a row, and rank by rank from the last, which have the fewest, a copy of the next
// expert of the ranks behind that the rank has not. Copies for which there is no rank are left out.
ExpertMap with_redundant(const ModelConfig& model, int redundant, int num_ranks) {
  const ExpertMap in_a_row = make_expert_map(model, num_ranks);
  std::vector<std::vector<int>> experts_of(static_cast<size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int copies = redundant / num_ranks + (num_ranks - 1 - rank < redundant % num_ranks ? 1 : 0);
    std::vector<int>& experts = experts_of[rank];
    for (int behind = 0; behind < num_ranks; ++behind) {
      const std::span<const int> theirs = in_a_row.experts_of((rank + behind) % num_ranks);
      experts.insert(experts.end(), theirs.begin(), theirs.end());
    }
    const size_t wanted = in_a_row.experts_of(rank).size() + static_cast<size_t>(copies);
    experts.resize(std::min(wanted, experts.size()));
  }
  return ExpertMap::of(in_a_row.num_experts(), experts_of);
}

// Of all mixture layers.
uint64_t hash_of(const ExpertMaps& maps, const ModelConfig& model) {
  std::string text;
  for (const int layer : moe_layers_of(model)) {
    const ExpertMap& map = maps.of(layer);
    for (int rank = 0; rank < map.num_ranks(); ++rank)
      text += fmt::format("{}; ", fmt::join(map.experts_of(rank), " "));
    for (int expert = 0; expert < map.num_experts(); ++expert) text += fmt::format("{} ", map.first_replica(expert));
  }
  return hash_name(text);
}

}  // namespace

ExpertMaps place_experts(const ModelConfig& model, const ParallelConfig& parallel, int num_ranks) {
  if (model.n_routed_experts == 0) return make_expert_map(model, num_ranks);
  const auto redundant = static_cast<int>(parallel.redundant_experts);
  if (parallel.placement.empty()) {
    return redundant == 0 ? make_expert_map(model, num_ranks) : with_redundant(model, redundant, num_ranks);
  }
  const PlacementPlan plan = plan_from_json(read_json_file(parallel.placement), parallel.placement);
  CADRE_CHECK(redundant == 0 || redundant == plan.sizes.slots - plan.num_experts,
              fmt::format("parallel.redundant_experts = {}, allowed: 0 or the {} of parallel.placement = {}", redundant,
                          plan.sizes.slots - plan.num_experts, parallel.placement),
              "the file says how many there are");
  return maps_of(plan, model, num_ranks, parallel.placement);
}

void check_same_maps(const Communicator& world, const ExpertMaps& maps, const ModelConfig& model,
                     const std::string& placement) {
  const auto hash = static_cast<int64_t>(hash_of(maps, model) >> 1);
  const auto least = wait(world.all_reduce(std::array{hash, -hash}, ReduceOp::min));
  CADRE_CHECK(least[0] == -least[1], fmt::format("parallel.placement = {} is not the same on all ranks", placement),
              "all hosts must see the same file");
}

}  // namespace cadre
