// SPDX-License-Identifier: Apache-2.0
#include "layers/router/router.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

RouterOptions completed(RouterOptions options) {
  options.scorer.hidden = options.hidden;
  options.scorer.num_experts = options.num_experts;
  options.scorer.function = options.score;
  options.scorer.init_std = options.init_std;
  options.bias.balance = options.selection_bias;
  options.eligibility.groups = options.groups;
  options.select.num_experts = options.num_experts;
  options.select.top_k = options.top_k;
  if (options.select.rule == SelectRule::hierarchical) {
    options.select.groups = options.groups.groups;
    options.select.kept_groups = options.groups.kept;
    options.eligibility.groups = {};
  }
  return options;
}

void leave_out_choices(std::span<const uint8_t> alive, const Tensor& choice) {
  with_element_type(choice, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < choice.numel(); ++i) {
      if (alive[static_cast<size_t>(i) % alive.size()] == 0) choice.data<T>()[i] = -std::numeric_limits<T>::infinity();
    }
  });
}

}  // namespace

Router::Router(const std::string& prefix, const RouterOptions& options)
    : options_(completed(options)),
      scorer_(prefix, options_.scorer),
      bias_(prefix, options_.num_experts, options_.bias),
      selector_(make_selector(options_.select)),
      capacity_(prefix, options_.num_experts, options_.top_k, options_.capacity),
      losses_(options_.losses, options_.num_experts, options_.top_k),
      plain_rule_(plain_rule()) {
  set_dead(options_.dead_experts);
}

void Router::set_dead(const std::vector<int>& experts) {
  alive_.clear();
  if (experts.empty()) return;
  alive_.assign(static_cast<size_t>(options_.num_experts), 1);
  for (const int expert : experts) alive_.at(static_cast<size_t>(expert)) = 0;
}

Task<void> Router::forward(LaneContext& ctx, const Tensor& x, Saved& saved) const {
  const int64_t num_tokens = x.dim(0);
  saved.at_once = can_route_at_once(ctx);
  scorer_.forward(ctx, x, /*for_host=*/!saved.at_once || losses_.need_logits(), saved.scorer);
  saved.logits = saved.scorer.logits;
  saved.scores = saved.scorer.scores;
  saved.ids = ctx.arena.take_result("router", DType::i32, {num_tokens, num_slots()});
  saved.weights = ctx.arena.take_result("router", ctx.dtype, {num_tokens, num_slots()});
  if (saved.at_once) {
    Task<void> route = route_at_once(ctx, saved);
    co_await route;
    co_return;
  }
  Request computed = ctx.kernels.launched();
  co_await computed;
  saved.num_rerouted = scorer_.check(ctx, alive_, saved.scorer);
  scorer_.score(ctx, alive_, saved.scorer);
  Request scored = ctx.kernels.launched();
  co_await scored;
  saved.choice = choice_of(ctx, saved);
  saved.weighing = weighing_of(ctx, saved);
  Task<void> select = selector_->select(ctx, saved);
  co_await select;
  if (ctx.tokens.replay != nullptr && !ctx.arena.is_dry_run()) {
    use_recorded(*ctx.tokens.replay, ctx.lane.position.layer, saved.ids);
  }
  saved.weighed_ids = saved.ids;
  if (!ctx.arena.is_dry_run()) saved.demand = saved.counts = count_experts(saved.ids, options_.num_experts);
  if (capacity_.limits(ctx)) {
    if (!options_.capacity.renormalise) {
      saved.weighed_ids = ctx.arena.take_host("router", DType::i32, {num_tokens, num_slots()});
      if (saved.ids.numel() > 0) std::memcpy(saved.weighed_ids.raw(), saved.ids.raw(), saved.ids.bytes());
    }
    Task<void> limit = capacity_.limit(ctx, saved);
    co_await limit;
    saved.counts = count_experts(saved.ids, options_.num_experts);
  }
  if (!ctx.arena.is_dry_run()) routing_weights(options_.weights, saved.weighing, saved.weighed_ids, saved.weights);
}

std::optional<RouteRule> Router::plain_rule() const {
  const EligibilityOptions& eligible = options_.eligibility;
  const bool is_plain = options_.select.rule == SelectRule::token_choice && options_.select.top_p >= 1.0 &&
                        options_.select.task_top_k.empty() && eligible.conditions.empty() && !eligible.nodes.limits() &&
                        !bias_.options().history && bias_.options().task == 0.0 &&
                        options_.weights.gate == GateKind::score && options_.weights.groups == 0;
  if (!is_plain) return std::nullopt;
  return RouteRule{.softmax = options_.score == ScoreFunction::softmax,
                   .groups = eligible.groups.groups,
                   .kept = eligible.groups.kept,
                   .summed = eligible.groups.summed,
                   .renormalise = options_.weights.renormalise,
                   .scale = options_.weights.scale};
}

bool Router::can_route_at_once(const LaneContext& ctx) const {
  return plain_rule_ && alive_.empty() && ctx.tokens.replay == nullptr && !ctx.tokens.num_experts.defined() &&
         !capacity_.limits(ctx) && ctx.kernels.can_route(*plain_rule_, options_.num_experts);
}

// The host waits once, for ids, because the plan is its own, and looks at no scores.
Task<void> Router::route_at_once(LaneContext& ctx, Saved& saved) const {
  RouteResult result = {.scores = saved.scores,
                        .ids = saved.ids,
                        .weights = saved.weights,
                        .not_finite = ctx.arena.take_result("router", DType::i32, {saved.num_tokens()}),
                        .best = {},
                        .inverse = {}};
  if (ctx.training) losses_.take_results(ctx, saved.num_tokens(), result);
  const auto launch = [&] {
    ctx.kernels.route(*plain_rule_, saved.logits, bias_.balance(), result);
    if (ctx.training) losses_.launch_sums(ctx, result, saved);
  };
  launch();
  Request computed = ctx.kernels.launched();
  co_await computed;
  const std::span<const int32_t> not_finite(result.not_finite.data<int32_t>(), static_cast<size_t>(saved.num_tokens()));
  if (std::ranges::find(not_finite, 1) != not_finite.end()) {
    saved.num_rerouted = scorer_.check(ctx, alive_, saved.scorer);
    launch();  // with what check() has put in the place of those logits
    ctx.kernels.synchronize();
  }
  saved.weighed_ids = saved.ids;
  saved.demand = saved.counts = count_experts(saved.ids, options_.num_experts);
}

// Returns the scores themselves where no term changes them; callers then only read the result.
Tensor Router::choice_of(LaneContext& ctx, const Saved& saved) const {
  const bool only_reads = options_.select.rule == SelectRule::token_choice ||
                          options_.select.rule == SelectRule::expert_choice ||
                          options_.select.rule == SelectRule::hybrid || options_.select.rule == SelectRule::by_kind;
  if (only_reads && alive_.empty() && !bias_.options().moves() && !options_.eligibility.limits()) return saved.scores;
  const Tensor choice = ctx.arena.take_host("router", ctx.dtype, {saved.scores.dim(0), saved.scores.dim(1)});
  if (ctx.arena.is_dry_run()) return choice;
  bias_.apply(ctx.tokens, saved.scores, choice);
  if (!alive_.empty()) leave_out_choices(alive_, choice);
  limit_to_eligible(options_.eligibility, ctx.tokens, choice);
  return choice;
}

Tensor Router::weighing_of(LaneContext& ctx, const Saved& saved) const {
  if (!bias_.weighs()) return saved.scores;
  const Tensor weighing = ctx.arena.take_host("router", ctx.dtype, {saved.scores.dim(0), saved.scores.dim(1)});
  if (!ctx.arena.is_dry_run()) bias_.weigh(ctx.tokens, saved.scores, weighing);
  return weighing;
}

Pending<std::vector<double>> Router::start_losses(LaneContext& ctx, Saved& saved) const {
  if (!ctx.training || !losses_.any()) return {};
  losses_.begin(ctx, saved, saved.scorer, saved.losses);
  if (saved.losses.sums.empty()) return {};
  return ctx.lane.data_group().all_reduce(std::move(saved.losses.sums), ReduceOp::sum);
}

void Router::finish_losses(LaneContext& ctx, Saved& saved, std::vector<double> sums) const {
  if (!ctx.training || !losses_.any()) return;
  saved.losses.sums = std::move(sums);
  losses_.finish(ctx, saved, saved.losses);
}

Tensor Router::input_grad(LaneContext& ctx, Saved& saved, const Tensor& dweights) {
  if (saved.at_once && !losses_.need_logits()) {
    learn(ctx, saved, dweights);
    const Tensor dlogits = ctx.arena.take("router", ctx.dtype, {saved.num_tokens(), options_.num_experts});
    ctx.kernels.route_grad(*plain_rule_, saved.scores, saved.ids, dweights, losses_.slopes(ctx, saved.losses), dlogits);
    return scorer_.input_grad_of_logits(ctx, saved.scorer, dlogits, {});
  }
  const auto zeros = [&](bool wanted) {
    if (!wanted) return Tensor();
    const Tensor tensor = ctx.arena.take_host("router", ctx.dtype, {saved.scores.dim(0), options_.num_experts});
    if (!ctx.arena.is_dry_run()) tensor.fill_zero();
    return tensor;
  };
  const Scorer::Grads grads = {zeros(true), zeros(losses_.need_logits()), zeros(losses_.need_noise()),
                               zeros(losses_.need_noise())};
  if (!ctx.arena.is_dry_run()) {
    learn(ctx, saved, dweights);
    const Tensor& weighing = saved.at_once ? saved.scores : saved.weighing;
    routing_weights_grad(options_.weights, weighing, saved.weighed_ids, dweights, grads.scores);
    if (bias_.weighs()) bias_.weigh_grad(ctx.tokens, grads.scores);
    losses_.add_grad(ctx, saved, saved.scorer, saved.losses, grads);
  }
  return scorer_.input_grad(ctx, saved.scorer, grads);
}

// What pieces learn from a micro-batch; dweights gets what losses add to it.
void Router::learn(const LaneContext& ctx, const Saved& saved, const Tensor& dweights) {
  if (bias_.options().history) bias_.add_history(ctx.tokens, saved.ids, dweights, history_);
  if (capacity_.learns()) {
    demand_.resize(saved.demand.size(), 0);
    std::ranges::transform(demand_, saved.demand, demand_.begin(), std::plus());
  }
  losses_.add_weights_grad(saved, saved.losses, dweights);
}

void Router::each_parameter(const ParameterVisitor& visit) {
  scorer_.each_parameter(visit);
  bias_.each_parameter(visit);
  capacity_.each_parameter(visit);
}

std::vector<int64_t> Router::take_statistics() {
  std::vector<int64_t> counts;
  if (capacity_.learns()) {
    demand_.resize(static_cast<size_t>(options_.num_experts), 0);
    counts = std::move(demand_);
  }
  if (bias_.options().history) {
    history_.resize(bias_.num_history_counts(), 0);
    counts.insert(counts.end(), history_.begin(), history_.end());
  }
  demand_.clear();
  history_.clear();
  return counts;
}

void Router::update(std::span<const int64_t> statistics, std::span<const int64_t> global_counts, double bias_rate) {
  bias_.update_balance(global_counts, bias_rate);
  const size_t num_demand = capacity_.learns() ? static_cast<size_t>(options_.num_experts) : 0;
  if (num_demand > 0) capacity_.update(statistics.first(num_demand));
  bias_.update_history(statistics.subspan(num_demand));
}

}  // namespace cadre
