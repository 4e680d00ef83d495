// SPDX-License-Identifier: Apache-2.0
#include "layers/router/select.hpp"

#include <algorithm>
#include <limits>

#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

class TokenChoice final : public Selector {
 public:
  explicit TokenChoice(const SelectOptions& options) : options_(options) {}

  int num_slots() const override { return options_.top_k; }

  Task<void> select(LaneContext& ctx, Routing& routing) const override {
    choose_best(ctx, routing.choice, options_.top_k, routing.ids);
    limit_count(options_, ctx.tokens, routing.scores, routing.ids);
    co_return;
  }

 private:
  SelectOptions options_;
};

// How many experts the scores ask for: the fewest whose share reaches top_p.
template <class T>
int64_t count_for_share(double top_p, const T* scores, int64_t num_experts, const int32_t* ids, int64_t num_slots) {
  double all = 0.0;
  for (int64_t e = 0; e < num_experts; ++e) all += scores[e];
  double sum = 0.0;
  for (int64_t k = 0; k < num_slots; ++k) {
    if (ids[k] < 0) return k;
    sum += scores[ids[k]];
    if (sum >= top_p * all) return k + 1;
  }
  return num_slots;
}

int64_t asked_for(const SelectOptions& options, const TokenFacts& tokens, int64_t t) {
  if (tokens.num_experts.defined()) return tokens.num_experts.data<int32_t>()[t];
  if (options.task_top_k.empty() || !tokens.task.defined()) return options.top_k;
  const int32_t task = tokens.task.data<int32_t>()[t];
  if (task < 0 || static_cast<size_t>(task) >= options.task_top_k.size()) return options.top_k;
  return options.task_top_k[static_cast<size_t>(task)];
}

}  // namespace

std::unique_ptr<Selector> make_token_choice(const SelectOptions& options) {
  return std::make_unique<TokenChoice>(options);
}

std::unique_ptr<Selector> make_selector(const SelectOptions& options) {
#define CADRE_CASE(name) \
  case SelectRule::name: return make_##name(options);
  switch (options.rule) {
    CADRE_SELECT_RULES(CADRE_CASE)
    case SelectRule::dense: return make_token_choice(options);
    case SelectRule::plugin: return make_from_plugin(options);
    case SelectRule::by_kind: return make_by_kind(options);
  }
#undef CADRE_CASE
  throw Error(ErrorKind::internal, "a selection rule without code");
}

void choose_best(Context& ctx, const Tensor& choice, int top_k, const Tensor& ids) {
  ArenaScope scope(ctx.arena);
  const bool fills = ids.dim(1) == top_k;
  const Tensor best = fills ? ids : ctx.arena.take("router", DType::i32, {choice.dim(0), top_k});
  ctx.kernels.top_k(choice, Tensor(), best);
  if (ctx.arena.is_dry_run()) return;
  if (!fills) std::fill_n(ids.data<int32_t>(), ids.numel(), -1);
  with_element_type(choice, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < choice.dim(0); ++t) {
      const T* row = choice.data<T>() + t * choice.dim(1);
      for (int k = 0; k < top_k; ++k) {
        const int32_t id = best.data<int32_t>()[t * top_k + k];
        const bool may = id >= 0 && row[id] > -std::numeric_limits<T>::infinity();
        ids.data<int32_t>()[t * ids.dim(1) + k] = may ? id : -1;
      }
    }
  });
}

void limit_count(const SelectOptions& options, const TokenFacts& tokens, const Tensor& scores, const Tensor& ids) {
  const bool by_share = options.top_p < 1.0;
  if (ids.raw() == nullptr || (!by_share && options.task_top_k.empty() && !tokens.num_experts.defined())) return;
  const int64_t num_slots = ids.dim(1);
  with_element_type(scores, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < ids.dim(0); ++t) {
      int32_t* id = ids.data<int32_t>() + t * num_slots;
      int64_t count = std::clamp<int64_t>(asked_for(options, tokens, t), 1, num_slots);
      if (by_share) {
        const T* score = scores.data<T>() + t * scores.dim(1);
        count = std::min(count, count_for_share(options.top_p, score, scores.dim(1), id, num_slots));
      }
      for (int64_t k = count; k < num_slots; ++k) id[k] = -1;
    }
  });
}

}  // namespace cadre
