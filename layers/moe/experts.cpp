// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/experts.hpp"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

std::string name_of_expert(const std::string& prefix, const ExpertOptions& options, int id) {
  return fmt::format("{}.{}", prefix, options.global_id(id));
}

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

Experts::Experts(const std::string& prefix, const ExpertMap& map, int rank, const ExpertOptions& options)
    : prefix_(prefix),
      options_(options),
      width_in_(options.width_in()),
      width_out_(options.width_out()),
      ids_(map.experts_of(rank).begin(), map.experts_of(rank).end()) {
  experts_.reserve(ids_.size());
  for (const int id : ids_) {
    experts_.push_back(make_expert(name_of_expert(prefix, options, id), options, id));
    experts_.back()->each_parameter([&](Parameter& parameter) { parameter.holders = map.holders(id); });
  }
  make_group();
}

void Experts::make_group() {
  if (options_.kinds != ExpertKinds::same || experts_.empty()) return;
  std::vector<Parameter*> weights;
  each_parameter([&](Parameter& weight) { weights.push_back(&weight); });
  group_.emplace(options_.ffn, weights);
}

// As many experts leave as come, in the order of ids.
std::vector<Experts::Successor> Experts::successors(const ExpertMap& map, int rank) const {
  const std::span<const int> wanted = map.experts_of(rank);
  CADRE_CHECK(wanted.size() == ids_.size(), fmt::format("{}: rank {} would hold {} experts, it has memory for {}",
                                                        prefix_, rank, wanted.size(), ids_.size()));
  std::vector<Successor> successors;
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (!std::ranges::binary_search(wanted, ids_[i])) successors.push_back({static_cast<int>(i), -1});
  }
  auto next = successors.begin();
  for (const int id : wanted) {
    if (!std::ranges::binary_search(ids_, id)) (next++)->id = id;
  }
  return successors;
}

void Experts::relocate(const ExpertMap& map, int rank) {
  std::vector<int> id_of = ids_;  // of each place
  for (const auto& [index, id] : successors(map, rank)) id_of[static_cast<size_t>(index)] = id;
  std::vector<size_t> order(ids_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, {}, [&](size_t index) { return id_of[index]; });
  std::vector<std::unique_ptr<Expert>> placed;
  for (const size_t index : order) {
    name(index, map, id_of[index]);
    placed.push_back(std::move(experts_[index]));
  }
  experts_ = std::move(placed);
  std::ranges::sort(id_of);
  ids_ = std::move(id_of);
  make_group();
}

std::string Experts::name_in(const Parameter& parameter, const Successor& successor) const {
  const std::string before = name_of_expert(prefix_, options_, ids_[static_cast<size_t>(successor.index)]);
  return name_of_expert(prefix_, options_, successor.id) + parameter.name().substr(before.size());
}

// The expert at `index`, until now ids_[index], as expert `id` of the map.
void Experts::name(size_t index, const ExpertMap& map, int id) {
  const std::string before = name_of_expert(prefix_, options_, ids_[index]);
  const std::string after = name_of_expert(prefix_, options_, id);
  experts_[index]->each_parameter([&](Parameter& parameter) {
    for (ParameterPart& part : parameter.parts) part.name.replace(0, before.size(), after);
    parameter.holders = map.holders(id);
  });
}

Tensor Experts::forward(Context& ctx, const Rows& rows, const Tensor& place_row, Saved& saved,
                        ExpertCache* cache) const {
  const int64_t num_places = place_row.dim(0);
  const Tensor x = ctx.arena.take("experts", ctx.dtype, {num_places, width_in_});
  const Tensor y = ctx.arena.take("experts", ctx.dtype, {num_places, width_out_});
  if (group_ && ctx.kernels.groups_products() && cache == nullptr && saved.chosen.empty()) {
    saved.group.emplace().offsets = saved.offsets;
    ctx.kernels.gather_rows(rows, place_row, Tensor(), x);
    group_->forward_into(ctx, x, *saved.group, y);
    return y;
  }
  saved.experts.resize(saved.offsets.size() - 1);
  for (size_t e = 0; e < saved.experts.size(); ++e) {
    const int64_t first = saved.offsets[e];
    const int64_t count = saved.offsets[e + 1] - first;
    const Tensor expert_x = x.rows(first, count);
    ctx.kernels.gather_rows(rows, place_row.rows(first, count), Tensor(), expert_x);
    Context of_expert = ctx;
    of_expert.dropout.rows = saved.tokens.defined() ? saved.tokens.rows(first, count) : Tensor();
    run(of_expert, e, expert_x, saved, y.rows(first, count), cache);
  }
  return y;
}

void Experts::run(Context& ctx, size_t expert, const Tensor& x, Saved& saved, const Tensor& y,
                  ExpertCache* cache) const {
  const Expert& chosen = at(saved, expert);
  if (cache == nullptr || x.dim(0) == 0) {
    saved.experts[expert] = chosen.forward_into(ctx, x, y);
    return;
  }
  const uint64_t version = chosen.version();
  Memory& memory = ctx.kernels.memory();
  const OnHost rows(x, memory);
  OnHost found(y, memory);
  if (cache->find(&chosen, version, *rows, *found)) return found.put_back();
  saved.experts[expert] = chosen.forward_into(ctx, x, y);
  cache->keep(&chosen, version, *rows, *OnHost(y, memory));
}

Tensor Experts::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const Tensor dx = ctx.arena.take("experts", ctx.dtype, {dy.dim(0), width_in_});
  if (saved.group) {
    group_->input_grad_into(ctx, *saved.group, dy, dx);
    return dx;
  }
  for (size_t e = 0; e < saved.experts.size(); ++e) {
    const int64_t first = saved.offsets[e];
    const int64_t count = saved.offsets[e + 1] - first;
    at(saved, e).input_grad_into(ctx, *saved.experts[e], dy.rows(first, count), dx.rows(first, count));
  }
  return dx;
}

void Experts::weight_grad(Context& ctx, const Saved& saved, int part) {
  if (saved.group) return group_->weight_grad(ctx, *saved.group);
  const auto e = static_cast<size_t>(part);
  at(saved, e).weight_grad(ctx, *saved.experts[e]);
}

void Experts::each_parameter(const ParameterVisitor& visit) {
  for (const auto& expert : experts_) expert->each_parameter(visit);
}

uint64_t Experts::version() const {
  uint64_t sum = 0;
  for (const auto& expert : experts_) sum += expert->version();
  return sum;
}

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
