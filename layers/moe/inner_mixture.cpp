// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/inner_mixture.hpp"

#include "layers/moe/rows.hpp"
#include "layers/router/not_finite.hpp"
#include "layers/router/weights.hpp"

namespace cadre {
namespace {

// A single one has its score as weight: divided by itself it would be 1, whatever the gate says.
WeightOptions weights_of(const ExpertOptions& options) { return {.renormalise = options.inner_top_k > 1}; }

ExpertOptions inner_options(const ExpertOptions& options) { return {.ffn = options.ffn, .kinds = ExpertKinds::same}; }

// K slots a row; for dry runs of evenly drawn experts.
ExpertBatch batch_of(const Context& ctx, const Tensor& ids, int num_experts) {
  const auto rows = static_cast<size_t>(ids.dim(0));
  const auto top_k = static_cast<int32_t>(ids.dim(1));
  const std::vector<int32_t> counts(rows, top_k);
  if (!ctx.arena.is_dry_run()) {
    return make_expert_batch(counts, {ids.data<int32_t>(), static_cast<size_t>(ids.numel())}, num_experts);
  }
  std::vector<int32_t> even(static_cast<size_t>(ids.numel()));
  for (size_t slot = 0; slot < even.size(); ++slot) even[slot] = static_cast<int32_t>(slot) % num_experts;
  return make_expert_batch(counts, even, num_experts);
}

}  // namespace

InnerMixture::InnerMixture(const std::string& prefix, const ExpertOptions& options)
    : options_(options),
      gate_(make_weight({{prefix + ".gate.weight", options.inner_experts}}, options.ffn.hidden, options.ffn.init_std,
                        options.ffn.placement)),
      experts_(prefix + ".experts", ExpertMap::contiguous(options.inner_experts, 1), 0, inner_options(options)) {}

void InnerMixture::choose(Context& ctx, const Tensor& x, Saved& saved) const {
  Context products = ctx.fp32();
  const int64_t rows = x.dim(0);
  const Tensor logits = host_side(ctx, "experts", gate_.forward(products, x, saved.gate));
  saved.scores = ctx.arena.take_result("experts", ctx.dtype, {rows, options_.inner_experts});
  saved.ids = ctx.arena.take_result("experts", DType::i32, {rows, options_.inner_top_k});
  saved.weights = ctx.arena.take_result("experts", ctx.dtype, {rows, options_.inner_top_k});
  std::vector<int64_t> bad;
  ctx.kernels.synchronize();
  if (!ctx.arena.is_dry_run()) bad = rows_not_finite(logits);
  zero_rows(bad, logits);
  ctx.kernels.softmax(logits, saved.scores);
  ctx.kernels.top_k(saved.scores, Tensor(), saved.ids);
  if (!ctx.arena.is_dry_run()) routing_weights(weights_of(options_), saved.scores, saved.ids, saved.weights);
  fill_with_nan(bad, saved.weights, ctx.kernels.memory());
  saved.batch = batch_of(ctx, saved.ids, options_.inner_experts);
  saved.experts.offsets = saved.batch.expert_offsets;
}

void InnerMixture::forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const {
  choose(ctx, x, saved);
  saved.out = experts_.forward(ctx, x, index_tensor(saved.batch.place_row), saved.experts);
  ctx.kernels.sum_rows(saved.out, index_tensor(saved.batch.row_places), index_tensor(saved.batch.row_place),
                       saved.weights.reshape({saved.weights.numel()}), y);
}

void InnerMixture::input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const {
  const ExpertBatch& batch = saved.batch;
  const int64_t num_slots = saved.weights.numel();
  const Tensor weights = saved.weights.reshape({num_slots, 1});
  const Tensor place_weight = ctx.arena.take("experts", ctx.dtype, {num_slots, 1});
  const Tensor d_out = ctx.arena.take("experts", ctx.dtype, {num_slots, options_.ffn.hidden});
  const Tensor dweights = ctx.arena.take_result("experts", ctx.dtype, {saved.weights.dim(0), options_.inner_top_k});
  const Tensor dscores = ctx.arena.take_result("experts", ctx.dtype, {saved.scores.dim(0), options_.inner_experts});
  const Tensor dlogits = ctx.arena.take("experts", ctx.dtype, {saved.scores.dim(0), options_.inner_experts});
  ctx.kernels.gather_rows(weights, index_tensor(batch.place_slot), Tensor(), place_weight);
  ctx.kernels.gather_rows(dy, index_tensor(batch.place_row), place_weight.reshape({num_slots}), d_out);
  ctx.kernels.dot_rows(dy, index_tensor(batch.slot_row), saved.out, index_tensor(batch.row_place),
                       dweights.reshape({num_slots}));
  const Tensor d_places = experts_.input_grad(ctx, saved.experts, d_out);
  ctx.kernels.sum_rows(d_places, index_tensor(batch.row_places), index_tensor(batch.row_place), Tensor(), dx);

  ctx.kernels.synchronize();
  if (!ctx.arena.is_dry_run()) routing_weights_grad(weights_of(options_), saved.scores, saved.ids, dweights, dscores);
  ctx.kernels.softmax_grad(saved.scores, dscores, dlogits);
  Context products = ctx.fp32();
  gate_.input_grad_into(products, saved.gate, dlogits, dx, Accumulate::yes);
}

void InnerMixture::weight_grad(Context& ctx, const Saved& saved) {
  Context products = ctx.fp32();
  gate_.weight_grad(products, saved.gate);
  for (int part = 0; part < experts_.num_weight_parts(saved.experts); ++part) {
    experts_.weight_grad(ctx, saved.experts, part);
  }
}

void InnerMixture::each_parameter(const ParameterVisitor& visit) {
  gate_.each_parameter(visit);
  experts_.each_parameter(visit);
}

}  // namespace cadre
