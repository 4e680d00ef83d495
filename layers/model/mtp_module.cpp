// SPDX-License-Identifier: Apache-2.0
#include "layers/model/mtp_module.hpp"

#include "layers/nn/documents.hpp"

namespace cadre {

MtpModule::MtpModule(const ModelConfig& config, int index, const ExpertMap& map, int expert_rank)
    : hidden_(config.hidden_size),
      enorm_(layer_name(index, "enorm"), norm_options(config)),
      hnorm_(layer_name(index, "hnorm"), norm_options(config)),
      eh_proj_(layer_name(index, "eh_proj"), 2 * config.hidden_size, config.hidden_size, config.initializer_range),
      block_(config, index, map, expert_rank),
      head_norm_(layer_name(index, "shared_head.norm"), norm_options(config)) {}

namespace {

// The last token of a document that another one follows in its sequence has nothing to predict: what it reads is of the
// next document.
void forget_targets_across(const Sequences& whole, const TokenBatch& shifted) {
  int64_t row = 0;
  for (const int64_t length : whole.documents) {
    row += length;
    const int64_t last = row - 1;
    const int64_t place = last % whole.length;
    if (place == whole.length - 1) continue;  // gone
    shifted.targets.data<int32_t>()[last / whole.length * (whole.length - 1) + place] = -1;
  }
}

}  // namespace

// Token i of a sequence now reads and predicts what token i + 1 did; the last one is gone.
void MtpModule::shift(LaneContext& ctx, const TokenBatch& batch, Saved& saved) const {
  const int64_t length = batch.sequences.length;
  const int64_t left = std::max<int64_t>(length - 1, 0);
  const int64_t num_rows = batch.sequences.batch * left;
  const auto take = [&] { return ctx.arena.take_host("mtp", DType::i32, {num_rows}); };
  saved.num_rows = batch.ids.dim(0);
  saved.kept = take();
  saved.batch = {take(), take(), {batch.sequences.batch, left, take(), without_last_tokens(batch.sequences)}};
  if (batch.weights.defined()) saved.batch.weights = ctx.arena.take_host("mtp", DType::f32, {num_rows});
  for (int64_t row = 0; row < num_rows && !ctx.arena.is_dry_run(); ++row) {
    const int64_t from = row / left * length + row % left;
    saved.kept.data<int32_t>()[row] = static_cast<int32_t>(from);
    saved.batch.ids.data<int32_t>()[row] = batch.ids.data<int32_t>()[from + 1];
    saved.batch.targets.data<int32_t>()[row] = batch.targets.data<int32_t>()[from + 1];
    saved.batch.sequences.positions.data<int32_t>()[row] = batch.sequences.positions.data<int32_t>()[from];
    if (batch.weights.defined()) saved.batch.weights.data<float>()[row] = batch.weights.data<float>()[from + 1];
  }
  if (!ctx.arena.is_dry_run()) forget_targets_across(batch.sequences, saved.batch);
  saved.ctx.emplace(ctx);
  saved.ctx->tokens = shifted(ctx.arena, ctx.tokens, saved.kept, left, length);
}

// eh_proj [enorm(Emb(ids)) ; hnorm(h)]
Tensor MtpModule::join(Context& ctx, const Tensor& ids, const Tensor& h, const Embedding& embedding,
                       Saved& saved) const {
  const Tensor both = ctx.arena.take("mtp", ctx.dtype, {h.dim(0), 2 * hidden_});
  const Tensor next = enorm_.forward(ctx, embedding.forward(ctx, ids, saved.embedding), saved.enorm);
  ctx.kernels.copy_columns({next, 0, hidden_}, {both, 0, hidden_});
  ctx.kernels.copy_columns({hnorm_.forward(ctx, h, saved.hnorm), 0, hidden_}, {both, hidden_, hidden_});
  return eh_proj_.forward(ctx, both, saved.eh_proj);
}

Task<MtpModule::Output> MtpModule::forward(LaneContext& ctx, TokenBatch batch, Tensor h, const Embedding& embedding,
                                           const Head& head, Saved& saved) const {
  ctx.lane.enter("mtp");
  shift(ctx, batch, saved);
  const int64_t num_rows = saved.kept.dim(0);
  const Tensor rows = ctx.arena.take("mtp", ctx.dtype, {num_rows, hidden_});
  ctx.kernels.gather_rows(h, saved.kept, Tensor(), rows);
  const Tensor x = join(ctx, saved.batch.ids, rows, embedding, saved);
  Task<Tensor> layer = block_.forward(*saved.ctx, x, saved.batch.sequences, saved.block);
  const Tensor y = co_await layer;
  ctx.lane.enter("mtp");
  const Tensor losses = head.forward(ctx, head_norm_.forward(ctx, y, saved.head_norm), saved.batch.targets, saved.head,
                                     saved.batch.weights);
  Request computed = ctx.kernels.launched();
  co_await computed;
  co_return Output{y, ctx.arena.is_dry_run() ? 0.0 : sum_of_losses(losses, saved.batch.weights)};
}

Task<void> MtpModule::backward(LaneContext& ctx, Saved& saved, double scale, Tensor dy, Embedding& embedding,
                               Head& head, Tensor dh) {
  ctx.lane.enter("mtp gradient");
  const Tensor d_out = head_norm_.input_grad(ctx, saved.head_norm, head.input_grad(ctx, saved.head, scale));
  if (dy.defined()) ctx.kernels.add(d_out, dy, d_out);
  const Tensor dx = ctx.arena.take("mtp", ctx.dtype, {d_out.dim(0), hidden_});
  saved.ctx->deferred = ctx.deferred;  // which passes that run side by side do not share
  Task<void> layer = block_.backward(*saved.ctx, saved.block, d_out, dx);
  co_await layer;

  ctx.lane.enter("mtp gradient");
  const Tensor d_both = eh_proj_.input_grad(ctx, saved.eh_proj, dx);
  const Tensor d_next = ctx.arena.take("mtp", ctx.dtype, {dx.dim(0), hidden_});
  const Tensor d_rows = ctx.arena.take("mtp", ctx.dtype, {dx.dim(0), hidden_});
  ctx.kernels.copy_columns({d_both, 0, hidden_}, {d_next, 0, hidden_});
  ctx.kernels.copy_columns({d_both, hidden_, hidden_}, {d_rows, 0, hidden_});
  embedding.input_grad(ctx, saved.embedding, enorm_.input_grad(ctx, saved.enorm, d_next));
  add_kept_rows(ctx, saved, hnorm_.input_grad(ctx, saved.hnorm, d_rows), dh);
  defer(ctx, "mtp weights", [this, &ctx, &saved, &embedding, &head] {
    head.weight_grad(ctx, saved.head);
    head_norm_.weight_grad(ctx, saved.head_norm);
    eh_proj_.weight_grad(ctx, saved.eh_proj);
    enorm_.weight_grad(ctx, saved.enorm);
    hnorm_.weight_grad(ctx, saved.hnorm);
    embedding.weight_grad(ctx, saved.embedding);
  });
}

// dh += the gradient of the rows that were kept.
void MtpModule::add_kept_rows(Context& ctx, const Saved& saved, const Tensor& rows, const Tensor& dh) const {
  const ArenaScope scope(ctx.arena);
  const Tensor offsets = ctx.arena.take_host("mtp", DType::i32, {saved.num_rows + 1});
  const Tensor order = ctx.arena.take_host("mtp", DType::i32, {rows.dim(0)});
  const Tensor spread = ctx.arena.take("mtp", ctx.dtype, {saved.num_rows, hidden_});
  if (!ctx.arena.is_dry_run()) {
    auto* offset = offsets.data<int32_t>();
    int32_t next = 0;
    for (int64_t row = 0; row < saved.num_rows; ++row) {
      offset[row] = next;
      if (next < rows.dim(0) && saved.kept.data<int32_t>()[next] == row) order.data<int32_t>()[next] = next, ++next;
    }
    offset[saved.num_rows] = next;
  }
  ctx.kernels.sum_rows(rows, offsets, order, Tensor(), spread);
  ctx.kernels.add(dh, spread, dh);
}

Task<Tensor> MtpModule::decode(LaneContext& ctx, Tensor ids, Tensor h, NextTokens tokens, KvCache& cache,
                               const Embedding& embedding) const {
  ctx.lane.enter("mtp");
  Saved unused;
  const Tensor x = join(ctx, ids, h, embedding, unused);
  Task<Tensor> layer = block_.decode(ctx, x, tokens, cache);
  const Tensor y = co_await layer;
  co_return y;
}

Tensor MtpModule::logits(Context& ctx, const Tensor& y, const Head& head) const {
  Norm::Saved unused;
  return head.logits(ctx, head_norm_.forward(ctx, y, unused));
}

void MtpModule::each_parameter(const ParameterVisitor& visit) {
  enorm_.each_parameter(visit);
  hnorm_.each_parameter(visit);
  eh_proj_.each_parameter(visit);
  block_.each_parameter(visit);
  head_norm_.each_parameter(visit);
}

}  // namespace cadre
