// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/expert_trip.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "comm/base/random.hpp"
#include "layers/moe/diversity.hpp"
#include "layers/moe/elements.hpp"
#include "layers/moe/slot_record.hpp"
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

ExpertBatch balanced_batch(const ReceiveCounts& receive, int num_experts) {
  std::vector<int32_t> row_slot_counts(static_cast<size_t>(receive.num_rows()), 0);
  std::vector<int32_t> slot_expert(static_cast<size_t>(receive.num_slots()));
  for (size_t slot = 0; slot < slot_expert.size(); ++slot) {
    slot_expert[slot] = static_cast<int32_t>(slot % static_cast<size_t>(num_experts));
    ++row_slot_counts[slot % row_slot_counts.size()];
  }
  return make_expert_batch(row_slot_counts, slot_expert, num_experts);
}

// Rows that the host packs must be there.
Request ready_to_pack(const LaneContext& ctx) {
  return ctx.exchange.packs_later() ? Request() : ctx.kernels.launched();
}

}  // namespace

ExpertTrip::ExpertTrip(const std::string& prefix, const TripOptions& options, const ExpertMap& map, int expert_rank)
    : options_(options), map_(map), expert_rank_(expert_rank), experts_(prefix, map, expert_rank, options.experts) {}

Task<Tensor> ExpertTrip::forward(LaneContext& ctx, Tensor x, Tensor ids, Tensor weights, Saved& saved,
                                 Meanwhile meanwhile) const {
  ctx.lane.enter("dispatch");
  saved.ids = ids;
  saved.weights = weights;
  make_plan(ctx, saved);
  Request announced = ctx.exchange.announce(saved.route);
  co_await announced;
  ctx.exchange.learn_counts(saved.route);

  const DispatchPlan& plan = saved.route.plan;
  auto slots = ctx.exchange.transfer(saved.route, Direction::to_experts, Unit::slot, kSlotRecordFormat);
  auto rows = ctx.exchange.transfer(saved.route, Direction::to_experts, Unit::row, dispatch_format(ctx, x.dim(1)));
  std::vector<SlotRecord> records;
  if (!ctx.arena.is_dry_run()) records = make_slot_records(plan, weights);
  slots->pack({reinterpret_cast<const std::byte*>(records.data()), sizeof(SlotRecord)});
  rows->pack(elements_of(x, plan.row_token));
  slots->start();
  co_await rows->packed();
  rows->start();

  Request& slots_here = slots->finish();
  Request& rows_here = rows->finish();
  if (meanwhile) {
    const Watch watch_slots(slots_here);
    const Watch watch_rows(rows_here);
    meanwhile();
    ctx.lane.enter("dispatch");
  }
  co_await slots_here;
  learn_batch(ctx, reinterpret_cast<const SlotRecord*>(slots->unpack().base), saved);
  slots.reset();
  co_await rows_here;

  ctx.lane.enter("experts");
  const Elements received = rows->unpack();
  saved.expert_out =
      experts_.forward(ctx, rows_of(received, ctx.dtype, x.dim(1)),
                       index_tensor(through(received, saved.batch.place_row)), saved.experts, ctx.expert_cache);
  rows.reset();

  ctx.lane.enter("combine");
  Task<Tensor> combined = combine(ctx, saved.expert_out, Weighted::yes, saved);
  const Tensor y = co_await combined;
  co_return y;
}

double ExpertTrip::diversity_loss(const LaneContext& ctx, const Saved& saved) const {
  if (!saved.slot_out.defined() || ctx.arena.is_dry_run()) return 0.0;
  return options_.diversity * ctx.token_scale * cadre::diversity_loss(saved.slot_out, saved.route.plan.token_slots);
}

Task<Tensor> ExpertTrip::backward(LaneContext& ctx, Saved& saved, Tensor dy, Meanwhile meanwhile, Learned learned) {
  // Output gradients travel to the experts as the tokens did.
  ctx.lane.enter("combine gradient");
  const int64_t width = dy.dim(1);
  Request given = ready_to_pack(ctx);
  co_await given;
  const auto rows = ctx.exchange.transfer(saved.route, Direction::to_experts, Unit::row, dispatch_format(ctx, width));
  rows->pack(elements_of(dy, saved.route.plan.row_token));
  co_await rows->packed();
  rows->start();
  Request& rows_here = rows->finish();
  if (meanwhile) {
    const Watch watch(rows_here);
    meanwhile();
    ctx.lane.enter("combine gradient");
  }
  co_await rows_here;

  ctx.lane.enter("experts gradient");
  const Elements received = rows->unpack();
  const Tensor d_out = ctx.arena.take("experts", ctx.dtype, {saved.place_weight.dim(0), width});
  ctx.kernels.gather_rows(rows_of(received, ctx.dtype, width), index_tensor(through(received, saved.batch.place_row)),
                          saved.place_weight, d_out);
  ctx.lane.enter("combine gradient");
  if (saved.slot_out.defined()) {
    Task<void> spread = add_diversity_grad(ctx, d_out, saved);
    co_await spread;
  }
  const Tensor d_weights = weights_grad(ctx, received, saved);
  Request computed = ctx.kernels.launched();
  co_await computed;
  auto weights_back = send_weights_grad(ctx, d_weights, saved);
  ctx.lane.enter("experts gradient");
  Request& weights_home = weights_back->finish();
  Tensor d_places;
  {
    const Watch watch(weights_home);
    d_places = experts_.input_grad(ctx, saved.experts, d_out);
  }
  for (int part = 0; part < experts_.num_weight_parts(saved.experts); ++part) {
    defer(ctx, "experts weights", [this, &ctx, &saved, part] { experts_.weight_grad(ctx, saved.experts, part); });
  }

  ctx.lane.enter("router gradient");
  co_await weights_home;
  const Tensor dweights = arrived_weights_grad(ctx, *weights_back, saved);
  weights_back.reset();
  learned(dweights);

  ctx.lane.enter("dispatch gradient");
  Task<Tensor> home = combine(ctx, d_places, Weighted::no, saved);
  const Tensor dx = co_await home;
  co_return dx;
}

void ExpertTrip::make_plan(LaneContext& ctx, Saved& saved) const {
  const auto num_slots = static_cast<int>(saved.ids.dim(1));
  if (ctx.arena.is_dry_run()) {
    const auto ids = balanced_routing(saved.ids.dim(0), options_.top_k, num_slots, map_.num_experts());
    saved.route.plan = make_dispatch_plan(ids, num_slots, map_, expert_rank_);
    return;
  }
  saved.route.plan = make_dispatch_plan({saved.ids.data<int32_t>(), static_cast<size_t>(saved.ids.numel())}, num_slots,
                                        map_, expert_rank_);
}

void ExpertTrip::learn_batch(LaneContext& ctx, const SlotRecord* records, Saved& saved) const {
  const ReceiveCounts& receive = saved.route.receive;
  const auto num_slots = receive.num_slots();
  saved.slot_weight = ctx.arena.take_host("experts", ctx.dtype, {num_slots});
  saved.place_weight = ctx.arena.take_host("experts", ctx.dtype, {num_slots});

  saved.batch = ctx.arena.is_dry_run() ? balanced_batch(receive, experts_.size())
                                       : make_expert_batch(receive, records, experts_.size());
  saved.experts.offsets = saved.batch.expert_offsets;
  if (ctx.arena.is_dry_run()) return;
  for (int64_t slot = 0; slot < num_slots; ++slot) set_element(saved.slot_weight, slot, records[slot].weight);
  for (int64_t place = 0; place < num_slots; ++place) {
    set_element(saved.place_weight, place, records[saved.batch.place_slot[place]].weight);
  }
}

Task<Tensor> ExpertTrip::combine(LaneContext& ctx, Tensor places, Weighted weighted, Saved& saved) const {
  const int64_t width = places.dim(1);
  const Tensor y = ctx.arena.take("moe", ctx.dtype, {saved.route.plan.num_tokens, width});
  const bool compared = weighted == Weighted::yes && compares_outputs(ctx);
  if (compared) {
    saved.slot_out = ctx.arena.take("moe", ctx.dtype, {saved.route.plan.num_slots(), width});
  }
  ArenaScope scope(ctx.arena);
  const bool by_slot = compared || ctx.combine == CombineMode::slot_order || ctx.exchange.prefers_slots();
  const RowFormat format = {ctx.dtype, width, ctx.wire.combine};
  const auto back = ctx.exchange.transfer(saved.route, Direction::to_tokens, by_slot ? Unit::slot : Unit::row, format);
  Tensor sums;
  if (!by_slot) {
    // The slots of a row are added here, so one row goes back for each that came.
    sums = ctx.arena.take("experts", ctx.dtype, {saved.route.receive.num_rows(), width});
    ctx.kernels.sum_rows(places, index_tensor(saved.batch.row_places), index_tensor(saved.batch.row_place),
                         weighted == Weighted::yes ? saved.slot_weight : Tensor(), sums);
  }
  Request computed = ready_to_pack(ctx);
  co_await computed;
  Elements results = by_slot ? elements_of(places, saved.batch.row_place) : elements_of(sums);
  results.owner = ctx.arena.owner();
  back->pack(results);
  co_await back->packed();
  back->start();
  Request& rows_home = back->finish();
  co_await rows_home;
  const Elements home = back->unpack();
  const Tensor weights = by_slot && weighted == Weighted::yes ? weights_by_token(ctx, saved) : Tensor();
  ctx.kernels.sum_rows(rows_of(home, ctx.dtype, width), index_tensor(home.offsets), index_tensor(home.index), weights,
                       y);
  if (compared) {
    keep_outputs(ctx, home, saved);
    Request kept = ctx.kernels.launched();
    co_await kept;
  }
  Request& all_read = back->release();
  co_await all_read;
  co_return y;
}

void ExpertTrip::keep_outputs(LaneContext& ctx, const Elements& home, Saved& saved) const {
  std::vector<int32_t> slots(static_cast<size_t>(saved.slot_out.dim(0)));
  std::iota(slots.begin(), slots.end(), 0);
  ctx.kernels.gather_rows(rows_of(home, ctx.dtype, saved.slot_out.dim(1)), index_tensor(through(home, slots)), Tensor(),
                          saved.slot_out);
}

Task<void> ExpertTrip::add_diversity_grad(LaneContext& ctx, Tensor d_out, const Saved& saved) const {
  const DispatchPlan& plan = saved.route.plan;
  const int64_t width = d_out.dim(1);
  const Tensor grads = ctx.arena.take("moe", ctx.dtype, {plan.num_slots(), width});
  const Tensor arrived = ctx.arena.take("experts", ctx.dtype, {d_out.dim(0), width});
  ctx.kernels.synchronize();
  if (!ctx.arena.is_dry_run()) {
    diversity_grad(options_.diversity * ctx.token_scale, saved.slot_out, plan.token_slots, plan.token_slot, grads);
  }
  const auto slots = ctx.exchange.transfer(saved.route, Direction::to_experts, Unit::slot, {ctx.dtype, width});
  slots->pack(elements_of(grads));
  co_await slots->packed();
  slots->start();
  Request& here = slots->finish();
  co_await here;
  const Elements received = slots->unpack();
  ctx.kernels.gather_rows(rows_of(received, ctx.dtype, width), index_tensor(through(received, saved.batch.place_slot)),
                          Tensor(), arrived);
  ctx.kernels.add(d_out, arrived, d_out);
  Request read = ctx.kernels.launched();
  co_await read;
}

Tensor ExpertTrip::weights_by_token(LaneContext& ctx, const Saved& saved) const {
  const DispatchPlan& plan = saved.route.plan;
  const Tensor weights = ctx.arena.take_host("moe", ctx.dtype, {plan.num_slots()});
  for (int64_t i = 0; !ctx.arena.is_dry_run() && i < plan.num_slots(); ++i) {
    set_element(weights, i, element(saved.weights, plan.slots[plan.token_slot[i]]));
  }
  return weights;
}

// The expert's rank has both factors.
Tensor ExpertTrip::weights_grad(LaneContext& ctx, const Elements& d_rows, const Saved& saved) const {
  const Tensor here = ctx.arena.take_result("router", ctx.dtype, {saved.slot_weight.dim(0)});
  ctx.kernels.dot_rows(rows_of(d_rows, ctx.dtype, saved.expert_out.dim(1)),
                       index_tensor(through(d_rows, saved.batch.slot_row)), saved.expert_out,
                       index_tensor(saved.batch.row_place), here);
  return here;
}

std::unique_ptr<RowTransfer> ExpertTrip::send_weights_grad(LaneContext& ctx, const Tensor& d_weights,
                                                           Saved& saved) const {
  const size_t number_bytes = size_of(ctx.dtype);
  auto back = ctx.exchange.transfer(saved.route, Direction::to_tokens, Unit::slot, RowFormat::of_bytes(number_bytes));
  back->pack({d_weights.raw(), number_bytes});
  back->start();
  return back;
}

Tensor ExpertTrip::arrived_weights_grad(LaneContext& ctx, RowTransfer& back, const Saved& saved) const {
  const DispatchPlan& plan = saved.route.plan;
  const Tensor dweights = ctx.arena.take_host("router", ctx.dtype, {plan.num_tokens, saved.ids.dim(1)});
  if (ctx.arena.is_dry_run()) return dweights;
  const size_t number_bytes = size_of(ctx.dtype);
  const Elements home = back.unpack();
  dweights.fill_zero();  // masked slots have no gradient
  for (int64_t i = 0; i < plan.num_slots(); ++i) {
    std::memcpy(dweights.raw() + static_cast<size_t>(plan.slots[plan.token_slot[i]]) * number_bytes, home.at(i),
                number_bytes);
  }
  return dweights;
}

}  // namespace cadre
