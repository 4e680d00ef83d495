// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/moe_layer.hpp"

#include <vector>

#include "comm/base/check.hpp"
#include "layers/moe/rows.hpp"
#include "layers/router/not_finite.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

RoutedOptions routed_options(const MoeOptions& options) {
  return {.experts = {.ffn = {.hidden = options.hidden,
                              .width = options.expert_width,
                              .activation = options.activation,
                              .gated = options.gated,
                              .init_std = options.init_std,
                              .placement = Placement::expert,
                              .names = options.expert_names},
                      .kinds = options.expert_kinds,
                      .inner_experts = options.inner_experts,
                      .inner_top_k = options.inner_top_k},
          .top_k = options.router.top_k,
          .diversity = options.router.losses.diversity};
}

}  // namespace

MoeLayer::MoeLayer(const std::string& prefix, const MoeOptions& options, const ExpertMap& map, int expert_rank)
    : options_(options), map_(map), router_(prefix + ".gate", options.router) {
  if (options.expert_kinds == ExpertKinds::projections) {
    projections_.emplace(prefix + ".experts", routed_options(options), map, expert_rank);
  } else {
    experts_.emplace(prefix + ".experts", routed_options(options), map, expert_rank);
  }
  if (options.shared_width == 0) return;
  const std::string gate =
      options.shared_gate_name.empty() ? "" : fmt::format("{}.{}", prefix, options.shared_gate_name);
  shared_.emplace(fmt::format("{}.{}", prefix, options.shared_name),
                  SharedExpertOptions{.ffn = {.hidden = options.hidden,
                                              .width = options.shared_width,
                                              .activation = options.activation,
                                              .gated = options.gated,
                                              .init_std = options.init_std},
                                      .scale = options.shared_scale,
                                      .gate_name = gate});
}

Task<Tensor> MoeLayer::forward(LaneContext& ctx, Tensor x, Saved& saved) const {
  ctx.lane.enter("router");
  saved.x = x;
  Task<void> routing = router_.forward(ctx, x, saved.router);
  co_await routing;
  ctx.lane.enter("expert counts");
  Pending<std::vector<double>> counted = router_.start_losses(ctx, saved.router);

  Tensor shared_y;  // computed while the rows travel
  RoutedExperts::Meanwhile meanwhile;
  if (shared_) {
    meanwhile = [&] {
      ctx.lane.enter("shared experts");
      shared_y = shared_->forward(ctx, x, saved.shared.emplace());
    };
  }
  const Router::Saved& routed = saved.router;
  Task<Tensor> result = projections_
                            ? projections_->forward(ctx, x, routed.ids, routed.weights, saved.projections, meanwhile)
                            : experts_->forward(ctx, x, routed.ids, routed.weights, saved, meanwhile);
  const Tensor y = co_await result;
  if (shared_) ctx.kernels.add(y, shared_y, y);
  fill_with_nan(saved.router.scorer.not_finite, y, ctx.kernels.memory());

  ctx.lane.enter("expert counts");
  router_.finish_losses(ctx, saved.router, co_await std::move(counted));
  saved.balance_loss = saved.router.losses.value;
  if (experts_) saved.balance_loss += experts_->diversity_loss(ctx, saved);
  co_return y;
}

Task<Tensor> MoeLayer::backward(LaneContext& ctx, Saved& saved, Tensor dy) {
  Tensor shared_dx;  // computed while output gradients travel
  RoutedExperts::Meanwhile meanwhile;
  if (shared_) {
    meanwhile = [&] {
      ctx.lane.enter("shared experts gradient");
      shared_dx = shared_->input_grad(ctx, *saved.shared, dy);
      defer(ctx, "shared experts weights", [this, &ctx, &saved] { shared_->weight_grad(ctx, *saved.shared); });
    };
  }
  Tensor dx_router;
  const RoutedExperts::Learned learned = [&](const Tensor& dweights) {
    dx_router = router_.input_grad(ctx, saved.router, dweights);
    defer(ctx, "router weights", [this, &ctx, &saved] { router_.weight_grad(ctx, saved.router); });
  };
  Task<Tensor> result = projections_ ? projections_->backward(ctx, saved.projections, dy, meanwhile, learned)
                                     : experts_->backward(ctx, saved, dy, meanwhile, learned);
  const Tensor dx = co_await result;
  ctx.kernels.add(dx, dx_router, dx);
  if (shared_) ctx.kernels.add(dx, shared_dx, dx);
  co_return dx;
}

void MoeLayer::each_parameter(const ParameterVisitor& visit) {
  router_.each_parameter(visit);
  if (experts_) experts_->each_parameter(visit);
  if (projections_) projections_->each_parameter(visit);
  if (shared_) shared_->each_parameter(visit);
}

void MoeLayer::relocate(const ExpertMap& map, int expert_rank) {
  whole_experts();
  experts_->relocate(map, expert_rank);
  map_ = map;
}

void MoeLayer::each_successor(const ExpertMap& map, int expert_rank, const SuccessorVisitor& visit) {
  Experts& experts = whole_experts();
  for (const Experts::Successor& successor : experts.successors(map, expert_rank)) {
    experts.each_parameter(successor.index,
                           [&](Parameter& parameter) { visit(parameter, experts.name_in(parameter, successor)); });
  }
}

Experts& MoeLayer::whole_experts() {
  CADRE_CHECK(experts_.has_value(), "model.expert_kinds = projections: a single projection is not an expert of its own",
              "only whole experts can be looked at, grown or merged");
  return experts_->experts();
}

}  // namespace cadre
