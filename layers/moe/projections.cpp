// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/projections.hpp"

#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

constexpr int kNumKinds = 3;

// The experts of one kind, counted for themselves: expert j of it is 3 j + kind.
ExpertMap map_of(const ExpertMap& map, Projection kind) {
  std::vector<std::vector<int>> experts_of(static_cast<size_t>(map.num_ranks()));
  for (int rank = 0; rank < map.num_ranks(); ++rank) {
    for (const int id : map.experts_of(rank)) {
      if (id % kNumKinds == static_cast<int>(kind)) experts_of[static_cast<size_t>(rank)].push_back(id / kNumKinds);
    }
  }
  return ExpertMap::of(map.num_experts() / kNumKinds, experts_of);
}

RoutedOptions options_of(RoutedOptions options, Projection kind) {
  options.experts.projection = kind;
  options.top_k /= kNumKinds;
  return options;
}

// The slots of one kind.
Tensor ids_of(LaneContext& ctx, const Tensor& ids, Projection kind) {
  const int64_t count = ids.dim(1) / kNumKinds;
  const Tensor part = ctx.arena.take_host("router", DType::i32, {ids.dim(0), count});
  for (int64_t i = 0; i < part.numel() && !ctx.arena.is_dry_run(); ++i) {
    const int64_t from = i / count * ids.dim(1) + static_cast<int64_t>(kind) * count + i % count;
    const int32_t id = ids.data<int32_t>()[from];
    part.data<int32_t>()[i] = id < 0 ? -1 : id / kNumKinds;
  }
  return part;
}

Tensor weights_of(LaneContext& ctx, const Tensor& weights, Projection kind) {
  const int64_t count = weights.dim(1) / kNumKinds;
  const Tensor part = ctx.arena.take_host("router", ctx.dtype, {weights.dim(0), count});
  for (int64_t i = 0; i < part.numel() && !ctx.arena.is_dry_run(); ++i) {
    set_element(part, i, element(weights, i / count * weights.dim(1) + static_cast<int64_t>(kind) * count + i % count));
  }
  return part;
}

// Puts the gradients of the weights of one kind where its slots are.
RoutedExperts::Learned into(const LaneContext& ctx, const Tensor& all, Projection kind) {
  return [&ctx, all, kind](const Tensor& part) {
    const int64_t count = part.dim(1);
    for (int64_t i = 0; i < part.numel() && !ctx.arena.is_dry_run(); ++i) {
      set_element(all, i / count * all.dim(1) + static_cast<int64_t>(kind) * count + i % count, element(part, i));
    }
  };
}

}  // namespace

Projections::Projections(const std::string& prefix, const RoutedOptions& options, const ExpertMap& map, int expert_rank)
    : ffn_(options.experts.ffn),
      gate_(prefix, options_of(options, Projection::gate), map_of(map, Projection::gate), expert_rank),
      up_(prefix, options_of(options, Projection::up), map_of(map, Projection::up), expert_rank),
      down_(prefix, options_of(options, Projection::down), map_of(map, Projection::down), expert_rank) {}

Task<Tensor> Projections::forward(LaneContext& ctx, Tensor x, Tensor ids, Tensor weights, Saved& saved,
                                  RoutedExperts::Meanwhile meanwhile) const {
  const auto run = [&](const RoutedExperts& of, const Tensor& in, Projection kind, RoutedExperts::Saved& kept,
                       RoutedExperts::Meanwhile work) {
    return of.forward(ctx, in, ids_of(ctx, ids, kind), weights_of(ctx, weights, kind), kept, std::move(work));
  };
  Task<Tensor> gate = run(gate_, x, Projection::gate, saved.gate, std::move(meanwhile));
  const Tensor gated = co_await gate;
  Task<Tensor> up = run(up_, x, Projection::up, saved.up, {});
  const Tensor raised = co_await up;
  saved.gate_up = ctx.arena.take("moe", ctx.dtype, {x.dim(0), 2 * ffn_.width});
  ctx.kernels.copy_columns({gated, 0, ffn_.width}, {saved.gate_up, 0, ffn_.width});
  ctx.kernels.copy_columns({raised, 0, ffn_.width}, {saved.gate_up, ffn_.width, ffn_.width});
  saved.inner = activate(ctx, ffn_, saved.gate_up);
  Request computed = ctx.kernels.launched();
  co_await computed;
  Task<Tensor> down = run(down_, saved.inner, Projection::down, saved.down, {});
  const Tensor y = co_await down;
  co_return y;
}

Task<Tensor> Projections::backward(LaneContext& ctx, Saved& saved, Tensor dy, RoutedExperts::Meanwhile meanwhile,
                                   RoutedExperts::Learned learned) {
  const Tensor dweights =
      ctx.arena.take_host("router", ctx.dtype, {dy.dim(0), kNumKinds * saved.down.dispatch->plan().top_k});
  Task<Tensor> down = down_.backward(ctx, saved.down, dy, std::move(meanwhile), into(ctx, dweights, Projection::down));
  const Tensor d_inner = co_await down;
  const Tensor d_gate_up = activate_grad(ctx, ffn_, saved.gate_up, d_inner);
  const Tensor d_gate = ctx.arena.take("moe", ctx.dtype, {dy.dim(0), ffn_.width});
  const Tensor d_up = ctx.arena.take("moe", ctx.dtype, {dy.dim(0), ffn_.width});
  ctx.kernels.copy_columns({d_gate_up, 0, ffn_.width}, {d_gate, 0, ffn_.width});
  ctx.kernels.copy_columns({d_gate_up, ffn_.width, ffn_.width}, {d_up, 0, ffn_.width});
  Task<Tensor> gate = gate_.backward(ctx, saved.gate, d_gate, {}, into(ctx, dweights, Projection::gate));
  const Tensor dx = co_await gate;
  Task<Tensor> up = up_.backward(ctx, saved.up, d_up, {}, into(ctx, dweights, Projection::up));
  const Tensor dx_up = co_await up;
  learned(dweights);
  ctx.kernels.add(dx, dx_up, dx);
  co_return dx;
}

void Projections::each_parameter(const ParameterVisitor& visit) {
  gate_.each_parameter(visit);
  up_.each_parameter(visit);
  down_.each_parameter(visit);
}

}  // namespace cadre
