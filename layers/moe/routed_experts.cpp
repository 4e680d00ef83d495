// SPDX-License-Identifier: Apache-2.0
// The part of RoutedExperts that cuts rows over the ranks of a host.
#include "layers/moe/routed_experts.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "layers/moe/diversity.hpp"
#include "layers/moe/rows.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

// For dry runs: experts drawn evenly, so that tokens share destination ranks as often as in a balanced run.
std::vector<int32_t> balanced_routing(int64_t num_tokens, int top_k, int num_slots, int num_experts) {
  const Random random(0, "dry run", 0);
  std::vector<int32_t> ids;
  for (int64_t token = 0; token < num_tokens; ++token) {
    const uint64_t first = random.below(static_cast<uint64_t>(num_experts), static_cast<uint64_t>(token));
    const int stride = std::max(1, num_experts / top_k);
    for (int k = 0; k < top_k; ++k) {
      ids.push_back(
          static_cast<int32_t>((first + static_cast<uint64_t>(k * stride)) % static_cast<uint64_t>(num_experts)));
    }
    ids.resize(ids.size() + static_cast<size_t>(num_slots - top_k), -1);
  }
  return ids;
}

std::span<const int32_t> ids_of(const Tensor& ids) { return {ids.data<int32_t>(), static_cast<size_t>(ids.numel())}; }

RowFormat dispatch_format(const LaneContext& ctx, int64_t width) { return {ctx.dtype, width, ctx.wire.dispatch}; }

// `work` in its own phases, and then again in `phase`.
RoutedExperts::Meanwhile back_in(const char* phase, LaneContext& ctx, RoutedExperts::Meanwhile work) {
  if (!work) return {};
  return [phase, &ctx, work = std::move(work)] {
    work();
    ctx.lane.enter(phase);
  };
}

}  // namespace

RoutedExperts::RoutedExperts(const std::string& prefix, const RoutedOptions& options, const ExpertMap& map, int rank)
    : prefix_(prefix), options_(options), map_(map), rank_(rank), experts_(prefix, map, rank, options.experts) {}

Task<Tensor> RoutedExperts::forward(LaneContext& ctx, Tensor x, Tensor ids, Tensor weights, Saved& saved,
                                    Meanwhile meanwhile) const {
  std::vector<int64_t> counts;
  if (guests_ && !ctx.arena.is_dry_run()) {
    Task<void> balanced = balance(ctx, ids, saved, counts);
    co_await balanced;
  }
  ctx.lane.enter("dispatch");
  saved.dispatch = plan(ctx, ids, weights, saved, counts);
  Dispatch& dispatch = *saved.dispatch;
  {
    Task<ExpertRows> arrival = dispatch.to_experts(elements_of(x), dispatch_format(ctx, x.dim(1)), {},
                                                   back_in("dispatch", ctx, std::move(meanwhile)));
    const ExpertRows rows = co_await arrival;
    if (ctx.dropout.rows.defined()) {
      Task<Tensor> tokens = tokens_of_places(ctx, dispatch);
      saved.experts.tokens = co_await tokens;
    }
    ctx.lane.enter("experts");
    saved.experts.offsets = dispatch.expert_offsets();
    saved.expert_out = experts_.forward(ctx, rows_of(rows.elements(), ctx.dtype, x.dim(1)),
                                        index_tensor(rows.elements().index), saved.experts, ctx.expert_cache);
  }
  ctx.lane.enter("combine");
  if (ctx.training && options_.diversity > 0.0) {
    saved.slot_out = ctx.arena.take_result("moe", ctx.dtype, {dispatch.plan().num_slots(), saved.expert_out.dim(1)});
  }
  Task<Tensor> combined = combine(ctx, saved.expert_out, Weighted::yes, dispatch, saved.slot_out);
  co_return co_await combined;
}

double RoutedExperts::diversity_loss(const LaneContext& ctx, const Saved& saved) const {
  if (!saved.slot_out.defined() || ctx.arena.is_dry_run()) return 0.0;
  return options_.diversity * ctx.token_scale *
         cadre::diversity_loss(saved.slot_out, saved.dispatch->plan().token_slots);
}

Task<Tensor> RoutedExperts::backward(LaneContext& ctx, Saved& saved, Tensor dy, Meanwhile meanwhile, Learned learned) {
  ctx.lane.enter("combine gradient");
  Dispatch& dispatch = *saved.dispatch;
  const int64_t width = dy.dim(1);
  Task<ExpertRows> arrival = dispatch.to_experts(
      elements_of(dy), dispatch_format(ctx, width), [&ctx] { return ctx.kernels.launched(); },
      back_in("combine gradient", ctx, std::move(meanwhile)));
  const ExpertRows arrived = co_await arrival;

  ctx.lane.enter("experts gradient");
  const Rows dy_rows = rows_of(arrived.elements(), ctx.dtype, width);
  const Tensor row_of_place = index_tensor(arrived.elements().index);
  const Tensor d_out = ctx.arena.take("experts", ctx.dtype, {dispatch.num_places(), width});
  ctx.kernels.gather_rows(dy_rows, row_of_place, weight_tensor(ctx, dispatch.place_weights()), d_out);
  ctx.lane.enter("combine gradient");
  if (saved.slot_out.defined()) {
    Task<void> added = add_diversity_grad(ctx, d_out, saved);
    co_await added;
  }

  // The rank of the expert has both factors of dL/dw.
  std::vector<int32_t> places(static_cast<size_t>(dispatch.num_places()));
  std::iota(places.begin(), places.end(), 0);
  const Tensor d_place_weights = ctx.arena.take_result("router", ctx.dtype, {dispatch.num_places()});
  ctx.kernels.dot_rows(dy_rows, row_of_place, saved.expert_out, index_tensor(places), d_place_weights);
  const Tensor dweights = ctx.arena.take_host("router", ctx.dtype, {dispatch.plan().num_tokens, dispatch.plan().top_k});
  Tensor d_in;
  const Meanwhile input_grad = [&] {
    ctx.lane.enter("experts gradient");
    d_in = experts_.input_grad(ctx, saved.experts, d_out);
    for (int part = 0; part < experts_.num_weight_parts(saved.experts); ++part) {
      defer_experts(ctx, "experts weights", [this, &ctx, &saved, part] { add_weight_grad(ctx, saved, part); });
    }
    ctx.lane.enter("router gradient");
  };
  const size_t number_bytes = size_of(ctx.dtype);
  Task<void> returned = dispatch.numbers_to_tokens(Elements{d_place_weights.raw(), number_bytes}, number_bytes,
                                                   dweights.raw(), ctx.kernels.launched(), input_grad);
  co_await returned;
  learned(dweights);

  ctx.lane.enter("dispatch gradient");
  Task<Tensor> combined = combine(ctx, d_in, Weighted::no, dispatch, Tensor());
  co_return co_await combined;
}

std::unique_ptr<Dispatch> RoutedExperts::plan(LaneContext& ctx, const Tensor& ids, const Tensor& weights,
                                              const Saved& saved, std::span<const int64_t> counts) const {
  const auto num_slots = static_cast<int>(ids.dim(1));
  std::vector<double> values(static_cast<size_t>(weights.numel()));
  if (ctx.arena.is_dry_run()) {
    const auto drawn = balanced_routing(ids.dim(0), options_.top_k, num_slots, map_.num_experts());
    return std::make_unique<Dispatch>(ctx.exchange, drawn, num_slots, map_, std::move(values));
  }
  for (int64_t i = 0; i < weights.numel(); ++i) values[i] = element(weights, i);
  const std::span<const int32_t> chosen = ids_of(ids);
  if (!saved.balanced) return std::make_unique<Dispatch>(ctx.exchange, chosen, num_slots, map_, std::move(values));
  const std::vector<int32_t> replicas = choose_balanced(chosen, *saved.balanced, counts, rank_);
  return std::make_unique<Dispatch>(ctx.exchange, make_replica_plan(replicas, num_slots, saved.balanced->map),
                                    saved.balanced->map, std::move(values));
}

Task<Tensor> RoutedExperts::combine(LaneContext& ctx, Tensor places, Weighted weighted, Dispatch& dispatch,
                                    Tensor each) const {
  const int64_t width = places.dim(1);
  const Tensor y = ctx.arena.take("moe", ctx.dtype, {dispatch.plan().num_tokens, width});
  const ArenaScope scope(ctx.arena);
  KernelRowAdder adder(ctx, y, each);
  Elements results = elements_of(places);
  results.owner = ctx.arena.owner();
  const CombineMode mode = each.defined() ? CombineMode::slot_order : ctx.combine;
  Task<void> combined = dispatch.to_tokens(results, {ctx.dtype, width, ctx.wire.combine}, weighted, mode, adder);
  co_await combined;
  co_return y;
}

// They travel as two floats, of 20 bits each.
Task<Tensor> RoutedExperts::tokens_of_places(LaneContext& ctx, Dispatch& dispatch) const {
  constexpr int64_t kPart = int64_t{1} << 20;
  const bool is_dry = ctx.arena.is_dry_run();
  const std::vector<int32_t>& slots_of = dispatch.plan().token_slots;
  const Tensor sent = ctx.arena.take_host("dropout", DType::f32, {dispatch.plan().num_slots(), 2});
  for (size_t token = 0; token + 1 < slots_of.size() && !is_dry; ++token) {
    const int64_t number = ctx.dropout.rows.data<int64_t>()[token];
    for (int32_t slot = slots_of[token]; slot < slots_of[token + 1]; ++slot) {
      sent.data<float>()[2 * slot] = static_cast<float>(number / kPart);
      sent.data<float>()[2 * slot + 1] = static_cast<float>(number % kPart);
    }
  }
  Task<ExpertRows> arrival = dispatch.slots_to_experts(elements_of(sent), {DType::f32, 2});
  const ExpertRows rows = co_await arrival;
  const Tensor numbers = ctx.arena.take_host("dropout", DType::i64, {dispatch.num_places()});
  const Elements elements = rows.elements();
  for (int64_t place = 0; place < numbers.numel() && !is_dry; ++place) {
    std::array<float, 2> parts = {};
    std::memcpy(parts.data(),
                elements.base + static_cast<size_t>(elements.index[static_cast<size_t>(place)]) * elements.stride,
                sizeof parts);
    numbers.data<int64_t>()[place] = static_cast<int64_t>(parts[0]) * kPart + static_cast<int64_t>(parts[1]);
  }
  co_return numbers;
}

Task<void> RoutedExperts::add_diversity_grad(LaneContext& ctx, Tensor d_out, const Saved& saved) const {
  Dispatch& dispatch = *saved.dispatch;
  const int64_t width = d_out.dim(1);
  const Tensor grads = ctx.arena.take_result("moe", ctx.dtype, {dispatch.plan().num_slots(), width});
  const Tensor arrived = ctx.arena.take("experts", ctx.dtype, {d_out.dim(0), width});
  ctx.kernels.synchronize();
  if (!ctx.arena.is_dry_run()) {
    diversity_grad(options_.diversity * ctx.token_scale, saved.slot_out, dispatch.plan().token_slots, grads);
  }
  Task<ExpertRows> arrival = dispatch.slots_to_experts(elements_of(grads), {ctx.dtype, width});
  const ExpertRows rows = co_await arrival;
  ctx.kernels.gather_rows(rows_of(rows.elements(), ctx.dtype, width), index_tensor(rows.elements().index), Tensor(),
                          arrived);
  ctx.kernels.add(d_out, arrived, d_out);
  Request added = ctx.kernels.launched();
  co_await added;
}

void RoutedExperts::balance_on_host(HostWeights weights) {
  CADRE_ASSERT(map_.num_replicas() == map_.num_experts());
  guests_ = std::make_unique<GuestExperts>(prefix_, options_.experts, std::move(weights));
  guests_of_.clear();
}

// Ranks tell each other how many rows they have for each expert, and the version of their weights.
Task<void> RoutedExperts::balance(LaneContext& ctx, Tensor ids, Saved& saved, std::vector<int64_t>& counts) const {
  ctx.lane.enter("expert counts");
  const auto num_experts = static_cast<size_t>(map_.num_experts());
  std::vector<int64_t> mine = count_slots({ids.data<int32_t>(), static_cast<size_t>(ids.numel())},
                                          static_cast<int>(ids.dim(1)), map_.num_experts());
  mine.push_back(static_cast<int64_t>(experts_.version()));
  const std::vector<int64_t> all = co_await ctx.lane.expert_group().all_gather(mine);
  std::vector<uint64_t> versions;
  for (auto next = all.begin(); next != all.end();) {
    counts.insert(counts.end(), next, next + static_cast<std::ptrdiff_t>(num_experts));
    next += static_cast<std::ptrdiff_t>(num_experts);
    versions.push_back(static_cast<uint64_t>(*next++));
  }
  BalancedRows rows = balance_rows(counts, map_, guests_->host_of_rank());
  saved.balanced.reset();
  saved.experts.chosen.clear();
  if (rows.map.num_replicas() == map_.num_replicas()) co_return;  // even as it is
  saved.balanced = std::move(rows);
  int own = 0;
  for (const int id : saved.balanced->map.experts_of(rank_)) {
    const int owner = map_.owner(id);
    saved.experts.chosen.push_back(
        owner == rank_ ? experts_.own(own++)
                       : &guests_->expert(id, owner, map_.local_index(id), versions[static_cast<size_t>(owner)]));
  }
}

void RoutedExperts::add_weight_grad(Context& ctx, const Saved& saved, int part) {
  if (saved.balanced) {
    const int id = saved.balanced->map.experts_of(rank_)[static_cast<size_t>(part)];
    if (map_.owner(id) != rank_) {
      guests_->begin_grads(*saved.experts.chosen[static_cast<size_t>(part)]);
    } else {
      const std::vector<int> ranks = saved.balanced->map.holders(id);
      if (ranks.size() > 1) guests_of_[id].insert(ranks.begin(), ranks.end());
    }
  }
  experts_.weight_grad(ctx, saved.experts, part);
}

void RoutedExperts::forget_shared_grads() {
  if (guests_) guests_->forget_grads();
  guests_of_.clear();
}

std::vector<OwnedValues> RoutedExperts::take_shared_grads() {
  if (!guests_) return {};
  std::vector<OwnedValues> all;
  for (auto& [id, ranks] : guests_of_) {
    ranks.erase(rank_);
    experts_.each_parameter(map_.local_index(id), [&, &guests = ranks](const Parameter& weight) {
      all.push_back({{weight.grad.data<float>(), static_cast<size_t>(weight.grad.numel())},
                     nullptr,
                     rank_,
                     {guests.begin(), guests.end()}});
    });
  }
  guests_of_.clear();
  std::vector<OwnedValues> of_guests = guests_->take_grads(rank_);
  std::move(of_guests.begin(), of_guests.end(), std::back_inserter(all));
  return all;
}

}  // namespace cadre
