// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/expert_group.hpp"

namespace cadre {
namespace {

std::vector<RowGroup> groups_of(const std::vector<int32_t>& offsets, const std::vector<Parameter*>& weights) {
  std::vector<RowGroup> groups;
  for (size_t e = 0; e < weights.size(); ++e) groups.push_back({offsets[e], offsets[e + 1] - offsets[e], weights[e]});
  return groups;
}

// Those that train, in a call for the gradients that begin and one for those that go on.
void write_grads(Context& ctx, const std::vector<int32_t>& offsets, const std::vector<Parameter*>& weights,
                 const Tensor& x, const Tensor& dy) {
  std::vector<RowGroup> begin, go_on;
  for (const RowGroup& group : groups_of(offsets, weights)) {
    if (!group.weight->frozen) (group.weight->grad_is_zero ? begin : go_on).push_back(group);
  }
  for (Parameter* weight : weights) weight->grad_is_zero &= weight->frozen;
  if (!begin.empty()) ctx.kernels.grouped_linear_weight_grad(x, dy, begin, Accumulate::no);
  if (!go_on.empty()) ctx.kernels.grouped_linear_weight_grad(x, dy, go_on, Accumulate::yes);
}

}  // namespace

ExpertGroup::ExpertGroup(const FfnOptions& options, std::span<Parameter* const> weights) : options_(options) {
  for (size_t i = 0; i < weights.size(); ++i) (i % 2 == 0 ? up_ : down_).push_back(weights[i]);
}

void ExpertGroup::forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const {
  saved.x = x;
  saved.up_out = ctx.arena.take("ffn", ctx.dtype, {x.dim(0), up_.front()->value.dim(0)});
  ctx.kernels.grouped_linear(x, groups_of(saved.offsets, up_), saved.up_out);
  const Arena::Mark mark = ctx.arena.mark();
  saved.inner = activate(ctx, options_, saved.up_out);
  ctx.kernels.grouped_linear(saved.inner, groups_of(saved.offsets, down_), y);
  if (!ctx.recompute.activations) return;
  ctx.arena.release(mark);
  saved.inner = Tensor();
}

void ExpertGroup::input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const {
  saved.dy = dy;
  const Tensor d_inner = ctx.arena.take("ffn", ctx.dtype, {dy.dim(0), options_.width});
  ctx.kernels.grouped_linear_input_grad(dy, groups_of(saved.offsets, down_), d_inner);
  saved.d_up_out = activate_grad(ctx, options_, saved.up_out, d_inner);
  ctx.kernels.grouped_linear_input_grad(saved.d_up_out, groups_of(saved.offsets, up_), dx);
}

void ExpertGroup::weight_grad(Context& ctx, const Saved& saved) {
  write_grads(ctx, saved.offsets, up_, saved.x, saved.d_up_out);
  const ArenaScope scope(ctx.arena);
  const Tensor inner = saved.inner.defined() ? saved.inner : activate(ctx, options_, saved.up_out);
  write_grads(ctx, saved.offsets, down_, inner, saved.dy);
}

}  // namespace cadre
