// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/optimizer_shards.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/check.hpp"
#include "runtime/train/gradient_reduction.hpp"

namespace cadre {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 20;  // of a rank in one exchange

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

// Elements [first, first + count) of the parameters one behind the other: copy(values, how many, where in the range).
template <class Copy>
void for_range(const std::vector<Parameter*>& parameters, int64_t first, int64_t count, const Copy& copy) {
  int64_t begin = 0;  // of a parameter
  for (Parameter* parameter : parameters) {
    const int64_t end = begin + parameter->value.numel();
    const int64_t from = std::max(begin, first);
    const int64_t to = std::min(end, first + count);
    if (from < to) copy(parameter->value.data<float>() + (from - begin), to - from, from - first);
    begin = end;
  }
}

size_t bytes_of(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }
std::byte* bytes_at(float* values) { return reinterpret_cast<std::byte*>(values); }
const std::byte* bytes_at(const float* values) { return reinterpret_cast<const std::byte*>(values); }

int64_t elements_of(const std::vector<Parameter*>& parameters) {
  return std::accumulate(parameters.begin(), parameters.end(), int64_t{0},
                         [](int64_t sum, const Parameter* parameter) { return sum + parameter->value.numel(); });
}

}  // namespace

std::vector<int> share_out(const std::vector<int64_t>& sizes, int num_ranks) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](size_t i) { return sizes[i]; });
  std::vector<int64_t> kept(static_cast<size_t>(num_ranks));
  std::vector<int> owners(sizes.size());
  for (const size_t i : order) {
    const auto least = std::ranges::min_element(kept);
    *least += sizes[i];
    owners[i] = static_cast<int>(least - kept.begin());
  }
  return owners;
}

OptimizerShards::OptimizerShards(Model& model, const PipelineRoutes& routes, const Grid& grid, int rank, bool sharded) {
  if (!sharded) return;
  for (const auto& stage : model.stages()) {
    for (const Placement placement : {Placement::shared, Placement::expert}) {
      const int index = stage->place().index;
      const std::vector<int> ranks = holders_of(index, placement, routes, grid, rank);
      if (ranks.size() < 2) continue;
      std::vector<Parameter*> held;
      std::vector<int64_t> sizes;
      stage->each_parameter([&](Parameter& parameter) {
        if (parameter.placement != placement || parameter.holders.size() > 1) return;
        held.push_back(&parameter);
        sizes.push_back(parameter.value.numel());
      });
      const auto mine = static_cast<int>(std::ranges::find(ranks, rank) - ranks.begin());
      Group& group = groups_.emplace_back(Group{index, placement, mine, {}});
      group.parameters.resize(ranks.size());
      const std::vector<int> owners = share_out(sizes, static_cast<int>(ranks.size()));
      for (size_t i = 0; i < held.size(); ++i) {
        group.parameters[static_cast<size_t>(owners[i])].push_back(held[i]);
        owners_[held[i]] = owners[i] == mine;
      }
    }
  }
}

bool OptimizerShards::keeps(const Parameter& parameter) const {
  const auto found = owners_.find(&parameter);
  return found == owners_.end() || found->second;
}

void OptimizerShards::exchange_values(GradientReduction& gradients, Lanes& lanes) const {
  if (groups_.empty()) return;
  Memory& memory = lanes.kernels().memory();
  lanes.lane().enter("parameters");
  for (const Group& group : groups_) {
    const Communicator& ranks = gradients.group(group.stage, group.placement);
    CADRE_ASSERT(ranks.size() == static_cast<int>(group.parameters.size()) && ranks.rank() == group.rank);
    int64_t most = 0;
    for (const auto& kept : group.parameters) most = std::max(most, elements_of(kept));
    for (int64_t first = 0; first < most; first += kMostElements) {
      const int64_t count = std::min(kMostElements, most - first);
      std::vector<float> mine(static_cast<size_t>(count));
      for_range(group.parameters[static_cast<size_t>(group.rank)], first, count,
                [&](const float* values, int64_t size, int64_t at) {
                  memory.read(bytes_at(mine.data() + at), bytes_at(values), bytes_of(size));
                });
      const std::vector<float> all = lanes.await(ranks.all_gather(mine));
      for (size_t rank = 0; rank < group.parameters.size(); ++rank) {
        if (static_cast<int>(rank) == group.rank) continue;
        const float* theirs = all.data() + static_cast<int64_t>(rank) * count;
        for_range(group.parameters[rank], first, count, [&](float* values, int64_t size, int64_t at) {
          memory.write(bytes_at(values), bytes_at(theirs + at), bytes_of(size));
        });
      }
    }
    for (const auto& kept : group.parameters) {
      for (Parameter* parameter : kept) {
        if (!parameter->frozen && !keeps(*parameter)) ++parameter->version;
      }
    }
  }
}

}  // namespace cadre
