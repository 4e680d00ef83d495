// SPDX-License-Identifier: Apache-2.0
// Token choice while its load is even enough; else, for this micro-batch, expert choice. The load is that of the fullest
// expert over all ranks, as a share of a capacity of 1.25 T K / E. While decoding, always token choice.
#include <algorithm>
#include <numeric>

#include "layers/moe/select.hpp"

namespace cadre {
namespace {

constexpr double kCapacityFactor = 1.25;

class Hybrid final : public Selector {
 public:
  explicit Hybrid(const SelectOptions& options) : options_(options), by_expert_(make_expert_choice(options)) {}

  int num_slots() const override { return by_expert_->num_slots(); }

  Task<void> select(LaneContext& ctx, Routing& routing) const override {
    choose_best(ctx, routing.choice, options_.top_k, routing.ids);
    limit_count(options_, ctx.tokens, routing.scores, routing.ids);
    if (ctx.decoding || ctx.arena.is_dry_run()) co_return;
    Task<std::vector<int64_t>> counting = sum_over_ranks(ctx, count_experts(routing.ids, options_.num_experts));
    const std::vector<int64_t> counts = co_await counting;
    const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    const double capacity = kCapacityFactor * total / options_.num_experts;
    if (static_cast<double>(std::ranges::max(counts)) <= options_.hybrid_load * capacity) co_return;
    Task<void> choosing = by_expert_->select(ctx, routing);
    co_await choosing;
  }

 private:
  SelectOptions options_;
  std::unique_ptr<Selector> by_expert_;
};

}  // namespace

std::unique_ptr<Selector> make_hybrid(const SelectOptions& options) { return std::make_unique<Hybrid>(options); }

}  // namespace cadre
