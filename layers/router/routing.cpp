// SPDX-License-Identifier: Apache-2.0
#include "layers/router/routing.hpp"

#include <numeric>
#include <utility>

namespace cadre {

int64_t Routing::num_dropped() const {
  return std::accumulate(demand.begin(), demand.end(), int64_t{0}) -
         std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

std::vector<int64_t> count_experts(const Tensor& ids, int64_t num_experts) {
  std::vector<int64_t> counts(static_cast<size_t>(num_experts), 0);
  const int32_t* id = ids.data<int32_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    if (id[i] >= 0) ++counts[static_cast<size_t>(id[i])];
  }
  return counts;
}

Task<std::vector<int64_t>> sum_over_ranks(LaneContext& ctx, std::vector<int64_t> values) {
  co_return co_await ctx.lane.data_group().all_reduce(std::move(values), ReduceOp::sum);
}

}  // namespace cadre
