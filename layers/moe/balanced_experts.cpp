// SPDX-License-Identifier: Apache-2.0
// The part of RoutedExperts that cuts rows over the ranks of a host.
#include <iterator>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/moe/routed_experts.hpp"

namespace cadre {

void RoutedExperts::balance_on_host(HostWeights weights) {
  CADRE_ASSERT(map_.num_replicas() == map_.num_experts());
  guests_ = std::make_unique<GuestExperts>(prefix_, options_.experts, std::move(weights));
  guests_of_.clear();
}

// Ranks tell each other how many rows they have for each expert, and the version of their weights.
Task<void> RoutedExperts::balance(LaneContext& ctx, Tensor ids, Saved& saved, std::vector<int64_t>& counts) const {
  ctx.lane.enter("expert counts");
  const auto num_experts = static_cast<size_t>(map_.num_experts());
  std::vector<int64_t> mine = count_slots({ids.data<int32_t>(), static_cast<size_t>(ids.numel())},
                                          static_cast<int>(ids.dim(1)), map_.num_experts());
  mine.push_back(static_cast<int64_t>(experts_.version()));
  const std::vector<int64_t> all = co_await ctx.lane.expert_group().all_gather(mine);
  std::vector<uint64_t> versions;
  for (auto next = all.begin(); next != all.end();) {
    counts.insert(counts.end(), next, next + static_cast<std::ptrdiff_t>(num_experts));
    next += static_cast<std::ptrdiff_t>(num_experts);
    versions.push_back(static_cast<uint64_t>(*next++));
  }
  BalancedRows rows = balance_rows(counts, map_, guests_->host_of_rank());
  saved.balanced.reset();
  saved.experts.chosen.clear();
  if (rows.map.num_replicas() == map_.num_replicas()) co_return;  // even as it is
  saved.balanced = std::move(rows);
  int own = 0;
  for (const int id : saved.balanced->map.experts_of(rank_)) {
    const int owner = map_.owner(id);
    saved.experts.chosen.push_back(
        owner == rank_ ? experts_.own(own++)
                       : &guests_->expert(id, owner, map_.local_index(id), versions[static_cast<size_t>(owner)]));
  }
}

void RoutedExperts::add_weight_grad(Context& ctx, const Saved& saved, int part) {
  if (saved.balanced) {
    const int id = saved.balanced->map.experts_of(rank_)[static_cast<size_t>(part)];
    if (map_.owner(id) != rank_) {
      guests_->begin_grads(*saved.experts.chosen[static_cast<size_t>(part)]);
    } else {
      const std::vector<int> ranks = saved.balanced->map.holders(id);
      if (ranks.size() > 1) guests_of_[id].insert(ranks.begin(), ranks.end());
    }
  }
  experts_.weight_grad(ctx, saved.experts, part);
}

void RoutedExperts::forget_shared_grads() {
  if (guests_) guests_->forget_grads();
  guests_of_.clear();
}

std::vector<OwnedValues> RoutedExperts::take_shared_grads() {
  if (!guests_) return {};
  std::vector<OwnedValues> all;
  for (auto& [id, ranks] : guests_of_) {
    ranks.erase(rank_);
    experts_.each_parameter(map_.local_index(id), [&, &guests = ranks](const Parameter& weight) {
      all.push_back({{weight.grad.data<float>(), static_cast<size_t>(weight.grad.numel())},
                     nullptr,
                     rank_,
                     {guests.begin(), guests.end()}});
    });
  }
  guests_of_.clear();
  std::vector<OwnedValues> of_guests = guests_->take_grads(rank_);
  std::move(of_guests.begin(), of_guests.end(), std::back_inserter(all));
  return all;
}

}  // namespace cadre
