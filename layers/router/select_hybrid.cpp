// SPDX-License-Identifier: Apache-2.0
// Token choice while its load is even enough; else, for this micro-batch, expert choice. The load says by how much the
// fullest expert is above the mean, max / mean - 1 (MaxVio; Wang et al. 2024), over the micro-batch of all ranks and the
// experts that one of its tokens may visit: 0 where all are equally full, at most E / K - 1. While decoding, always token
// choice.
#include <algorithm>
#include <limits>
#include <numeric>

#include "layers/router/select.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

// [E], how many tokens may visit each expert.
std::vector<int64_t> count_open(const Tensor& choice) {
  std::vector<int64_t> open(static_cast<size_t>(choice.dim(1)), 0);
  with_element_type(choice, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < choice.numel(); ++i) {
      if (choice.data<T>()[i] > -std::numeric_limits<T>::infinity()) ++open[static_cast<size_t>(i) % open.size()];
    }
  });
  return open;
}

double load_of(std::span<const int64_t> counts, std::span<const int64_t> open) {
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const auto num_open = static_cast<int64_t>(open.size()) - std::ranges::count(open, 0);
  if (total == 0) return 0.0;
  return static_cast<double>(std::ranges::max(counts) * num_open) / static_cast<double>(total) - 1.0;
}

class Hybrid final : public Selector {
 public:
  explicit Hybrid(const SelectOptions& options) : options_(options), by_expert_(make_expert_choice(options)) {}

  int num_slots() const override { return by_expert_->num_slots(); }

  Task<void> select(LaneContext& ctx, Routing& routing) const override {
    choose_best(ctx, routing.choice, options_.top_k, routing.ids);
    limit_count(options_, ctx.tokens, routing.scores, routing.ids);
    if (ctx.decoding || ctx.arena.is_dry_run()) co_return;
    std::vector<int64_t> counts = count_experts(routing.ids, options_.num_experts);
    const std::vector<int64_t> open = count_open(routing.choice);
    counts.insert(counts.end(), open.begin(), open.end());
    Task<std::vector<int64_t>> counting = sum_over_ranks(ctx, std::move(counts));
    const std::vector<int64_t> sums = co_await counting;
    if (load_of(std::span(sums).first(open.size()), std::span(sums).last(open.size())) <= options_.hybrid_load) {
      co_return;
    }
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
