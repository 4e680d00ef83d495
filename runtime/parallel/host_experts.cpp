// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/host_experts.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/group/agreement.hpp"

namespace cadre {
namespace {

int64_t most_bytes(const Communicator& host, size_t bytes) {
  return wait(host.all_reduce(static_cast<int64_t>(std::max<size_t>(bytes, 1)), ReduceOp::max));
}

// Of each expert of this rank, layer by layer: the number of its parameters and where they lie.
std::vector<int64_t> weight_offsets(const std::vector<MoeLayer*>& layers, int expert_rank, const HostWindow& window) {
  std::vector<int64_t> offsets;
  for (MoeLayer* const layer : layers) {
    const auto count = static_cast<int>(layer->expert_map().experts_of(expert_rank).size());
    for (int expert = 0; expert < count; ++expert) {
      const size_t at = offsets.size();
      offsets.push_back(0);
      layer->each_parameter_of_expert(expert, [&](const Parameter& weight) {
        offsets.push_back(window.offset_of(weight.value.raw()));
        ++offsets[at];
      });
    }
  }
  return offsets;
}

// Lists of any length of all ranks of the group, by rank.
std::vector<std::vector<int64_t>> gather_offsets(const Communicator& group, std::vector<int64_t> mine) {
  const auto lengths = wait(group.all_gather(static_cast<int64_t>(mine.size())));
  const auto longest = static_cast<size_t>(std::ranges::max(lengths));
  mine.resize(longest);
  const std::vector<int64_t> all = wait(group.all_gather(mine));
  std::vector<std::vector<int64_t>> lists;
  for (size_t rank = 0; rank < lengths.size(); ++rank) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(rank * longest);
    lists.emplace_back(first, first + lengths[rank]);
  }
  return lists;
}

}  // namespace

HostWindow::HostWindow(const Communicator& host, size_t bytes)
    : local_rank_(host.rank()),
      memory_(host.transport().share(whole_cache_lines(static_cast<size_t>(most_bytes(host, bytes))))) {}

std::byte* HostWindow::allocate(size_t bytes) {
  CADRE_ASSERT(bytes <= memory_->bytes_per_rank());
  return of(local_rank_);
}

HostExperts::HostExperts(const Communicator& world, const Communicator& expert_group, size_t bytes)
    : expert_group_(expert_group),
      topology_(discover_topology(expert_group)),
      host_(expert_group.split(topology_.host_of_rank[static_cast<size_t>(expert_group.rank())], expert_group.rank(),
                               "host/experts")) {
  const std::optional<Failure> failure =
      attempt_together(world, world.job().deadline_seconds(), "sharing the weights of experts",
                       [&] { window_ = std::make_unique<HostWindow>(host_, bytes); });
  if (!failure) return;
  window_ = nullptr;  // collective on the hosts that have it
  throw Error(failure->error("exchange.balance = host: sharing the weights of experts"));
}

void HostExperts::publish(const std::vector<MoeLayer*>& layers, bool with_grad) {
  const std::vector<std::vector<int64_t>> offsets =
      gather_offsets(expert_group_, weight_offsets(layers, expert_group_.rank(), *window_));
  const std::vector<int>& host_of_rank = topology_.host_of_rank;
  const int my_host = host_of_rank[static_cast<size_t>(expert_group_.rank())];
  std::vector<size_t> next(offsets.size(), 0);
  for (MoeLayer* const layer : layers) {
    HostWeights weights = {host_of_rank, {}, with_grad};
    weights.values.resize(offsets.size());
    for (size_t rank = 0; rank < offsets.size(); ++rank) {
      if (host_of_rank[rank] != my_host) continue;
      for (size_t i = 0; i < layer->expert_map().experts_of(static_cast<int>(rank)).size(); ++i) {
        std::vector<std::byte*>& values = weights.values[rank].emplace_back();
        for (int64_t left = offsets[rank].at(next[rank]++); left > 0; --left) {
          values.push_back(window_->of(topology_.local_rank[rank]) + offsets[rank].at(next[rank]++));
        }
      }
    }
    layer->balance_on_host(std::move(weights));
  }
}

size_t expert_value_bytes(const std::vector<Parameter*>& parameters) {
  size_t bytes = 0;
  for (const Parameter* parameter : parameters) {
    if (parameter->placement == Placement::expert) bytes += whole_cache_lines(parameter->value.bytes());
  }
  return bytes;
}

}  // namespace cadre
