// SPDX-License-Identifier: Apache-2.0
// Expert choice (Zhou et al. 2022): each expert takes its best ceil(T K / E) tokens of the micro-batch of all ranks. The
// load is even by construction; a token has any number of experts, none included.
#include <algorithm>
#include <limits>

#include "layers/router/keep_best.hpp"
#include "layers/router/select.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

// Token by token and, of a token, in rising order of experts; `rows` are those of their tokens.
std::vector<Candidate> candidates_of(const Tensor& choice, const TokenFacts& tokens, std::vector<int64_t>& rows) {
  std::vector<Candidate> candidates;
  candidates.reserve(static_cast<size_t>(choice.numel()));
  rows.reserve(candidates.capacity());
  with_element_type(choice, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < choice.numel(); ++i) {
      const T value = choice.data<T>()[i];
      if (value == -std::numeric_limits<T>::infinity()) continue;
      const int64_t t = i / choice.dim(1);
      candidates.push_back({static_cast<int32_t>(i % choice.dim(1)), sort_key(value), tokens.number_of(t)});
      rows.push_back(t);
    }
  });
  return candidates;
}

class ExpertChoice final : public Selector {
 public:
  explicit ExpertChoice(const SelectOptions& options) : options_(options) {}

  int num_slots() const override { return options_.num_experts; }

  Task<void> select(LaneContext& ctx, Routing& routing) const override {
    if (ctx.arena.is_dry_run()) co_return;
    CADRE_CHECK(
        !ctx.decoding, "model.router = expert_choice cannot decode token by token",
        "an expert chooses among all tokens of a batch, later ones included, which are not known yet; use a model "
        "with router = token_choice or hybrid");
    Task<std::vector<int64_t>> counting = sum_over_ranks(ctx, {routing.num_tokens()});
    const std::vector<int64_t> tokens = co_await counting;
    const int64_t share = (tokens[0] * options_.top_k + options_.num_experts - 1) / options_.num_experts;

    std::vector<int64_t> rows;
    std::vector<Candidate> candidates = candidates_of(routing.choice, ctx.tokens, rows);
    Task<std::vector<uint8_t>> keeping =
        keep_best(ctx, candidates, std::vector<int64_t>(static_cast<size_t>(options_.num_experts), share));
    const std::vector<uint8_t> kept = co_await keeping;

    const int64_t num_slots = routing.ids.dim(1);
    std::fill_n(routing.ids.data<int32_t>(), routing.ids.numel(), -1);
    for (size_t i = 0; i < candidates.size();) {
      size_t end = i;
      std::vector<Candidate> chosen;
      for (; end < candidates.size() && rows[end] == rows[i]; ++end) {
        if (kept[end] != 0) chosen.push_back(candidates[end]);
      }
      std::ranges::stable_sort(chosen, std::ranges::greater(), &Candidate::key);
      int32_t* ids = routing.ids.data<int32_t>() + rows[i] * num_slots;
      for (const Candidate& candidate : chosen) *ids++ = candidate.column;
      i = end;
    }
  }

 private:
  SelectOptions options_;
};

}  // namespace

std::unique_ptr<Selector> make_expert_choice(const SelectOptions& options) {
  return std::make_unique<ExpertChoice>(options);
}

}  // namespace cadre
