// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/latent_attention.hpp"

#include <cmath>
#include <tuple>

#include "comm/base/check.hpp"
#include "layers/nn/documents.hpp"

namespace cadre {
namespace {

Columns columns(const Tensor& rows, int64_t first, int64_t count) { return {rows, first, count}; }

}  // namespace

LatentAttention::LatentAttention(const std::string& prefix, const LatentAttentionOptions& options)
    : options_(options),
      q_(prefix + (options.q_rank > 0 ? ".q_b_proj" : ".q_proj"), options.q_rank > 0 ? options.q_rank : options.hidden,
         options.num_heads * (options.nope_dim + options.rope_dim), options.init_std),
      kv_a_(prefix + ".kv_a_proj_with_mqa", options.hidden, options.kv_rank + options.rope_dim, options.init_std,
            options.bias),
      kv_norm_(prefix + ".kv_a_layernorm",
               {.kind = NormKind::rms, .hidden = options.kv_rank, .epsilon = options.norm_epsilon}),
      kv_b_(prefix + ".kv_b_proj", options.kv_rank, options.num_heads * (options.nope_dim + options.value_dim),
            options.init_std),
      o_proj_(prefix + ".o_proj", options.num_heads * options.value_dim, options.hidden, options.init_std,
              options.bias) {
  CADRE_ASSERT(2 * static_cast<int64_t>(options.rope.frequencies.size()) == options.rope_dim);
  if (options.q_rank == 0) return;
  q_a_.emplace(prefix + ".q_a_proj", options.hidden, options.q_rank, options.init_std, options.bias);
  q_norm_.emplace(prefix + ".q_a_layernorm",
                  NormOptions{.kind = NormKind::rms, .hidden = options.q_rank, .epsilon = options.norm_epsilon});
}

double LatentAttention::scale() const { return options_.score_factor / std::sqrt(static_cast<double>(query_dim())); }

// For rows whose turning elements begin at column `first`.
Rope LatentAttention::rope_from(int64_t first) const {
  Rope rope = options_.rope;
  rope.first = first;
  return rope;
}

Tensor LatentAttention::query_source(Context& ctx, const Tensor& x, Saved& saved) const {
  return q_a_ ? q_a_->forward(ctx, x, saved.q_a) : x;
}

Tensor LatentAttention::queries(Context& ctx, const Tensor& source, const Tensor& positions, Saved& saved) const {
  const Tensor normed = q_norm_ ? q_norm_->forward(ctx, source, saved.q_norm) : source;
  const Tensor q = q_.forward(ctx, normed, saved.q).reshape({source.dim(0), options_.num_heads, query_dim()});
  ctx.kernels.rope(q, positions, rope_from(options_.nope_dim), RopeDirection::forward);
  return q;
}

Tensor LatentAttention::latents(Context& ctx, const Tensor& x, const Tensor& positions, Tensor& turned,
                                Saved& saved) const {
  const int64_t rank = options_.kv_rank;
  turned = kv_a_.forward(ctx, x, saved.kv_a).reshape({x.dim(0), 1, latent_dim()});
  ctx.kernels.rope(turned, positions, rope_from(rank), RopeDirection::forward);
  const Tensor latent = ctx.arena.take("attention", ctx.dtype, {x.dim(0), rank});
  ctx.kernels.copy_columns(columns(turned, 0, rank), columns(latent, 0, rank));
  return latent;
}

// Keys and values of every head.
void LatentAttention::expand(Context& ctx, const Tensor& latent, const Tensor& turned, Saved& saved) const {
  const auto& [nope, rope, value] = std::tie(options_.nope_dim, options_.rope_dim, options_.value_dim);
  const int64_t num_tokens = latent.dim(0);
  const int64_t heads = options_.num_heads;
  const Tensor kv = kv_b_.forward(ctx, latent, saved.kv_b).reshape({num_tokens, heads, nope + value});
  saved.keys = ctx.arena.take("attention", ctx.dtype, {num_tokens, heads, query_dim()});
  saved.values = ctx.arena.take("attention", ctx.dtype, {num_tokens, heads, value});
  ctx.kernels.copy_columns(columns(kv, 0, nope), columns(saved.keys, 0, nope));
  ctx.kernels.copy_columns(columns(turned, options_.kv_rank, rope), columns(saved.keys, nope, rope));
  ctx.kernels.copy_columns(columns(kv, nope, value), columns(saved.values, 0, value));
}

Tensor LatentAttention::forward(Context& ctx, const Tensor& x, const Sequences& sequences, Saved& saved) const {
  const int64_t heads = options_.num_heads;
  saved.sequences = sequences;
  saved.source = query_source(ctx, x, saved);
  saved.latent = latents(ctx, x, sequences.positions, saved.turned, saved);
  saved.out = ctx.arena.take("attention", ctx.dtype, {x.dim(0), heads * options_.value_dim});
  saved.lse = ctx.arena.take("attention", ctx.dtype, {sequences.batch, heads, sequences.length});
  const AttentionShape shape = {sequences.batch, sequences.length, sequences.length,   sequences.length, heads,
                                heads,           query_dim(),      options_.value_dim, scale()};
  const Arena::Mark mark = ctx.arena.mark();
  project_up(ctx, saved);
  attend_documents(ctx.kernels, shape, sequences, {saved.queries, saved.keys, saved.values, saved.out, saved.lse});
  if (ctx.recompute.mla_up) {
    ctx.arena.release(mark);
    saved.queries = saved.keys = saved.values = Tensor();
  }
  return o_proj_.forward(ctx, saved.out, saved.o_proj);
}

// From the latent vectors to queries, keys and values.
void LatentAttention::project_up(Context& ctx, Saved& saved) const {
  saved.queries = queries(ctx, saved.source, saved.sequences.positions, saved);
  expand(ctx, kv_norm_.forward(ctx, saved.latent, saved.kv_norm), saved.turned, saved);
}

Tensor LatentAttention::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const Sequences& sequences = saved.sequences;
  const int64_t heads = options_.num_heads;
  if (!saved.queries.defined()) project_up(ctx, saved);
  const Tensor dout = o_proj_.input_grad(ctx, saved.o_proj, dy);
  const Tensor dq = ctx.arena.take("attention", ctx.dtype, {dy.dim(0), heads, query_dim()});
  const Tensor dk = ctx.arena.take("attention", ctx.dtype, {dy.dim(0), heads, query_dim()});
  const Tensor dv = ctx.arena.take("attention", ctx.dtype, {dy.dim(0), heads, options_.value_dim});
  const AttentionShape shape = {sequences.batch, sequences.length, sequences.length,   sequences.length, heads,
                                heads,           query_dim(),      options_.value_dim, scale()};
  attend_documents_grad(ctx.kernels, shape, sequences, {saved.queries, saved.keys, saved.values, saved.out, saved.lse},
                        dout, dq, dk, dv);
  const Tensor dx = queries_grad(ctx, saved, dq);
  latents_grad(ctx, saved, dk, dv, dx);
  return dx;
}

Tensor LatentAttention::queries_grad(Context& ctx, Saved& saved, const Tensor& dq) const {
  ctx.kernels.rope(dq, saved.sequences.positions, rope_from(options_.nope_dim), RopeDirection::backward);
  const Tensor d_source = q_.input_grad(ctx, saved.q, dq.reshape({dq.dim(0), options_.num_heads * query_dim()}));
  if (!q_a_) return d_source;
  return q_a_->input_grad(ctx, saved.q_a, q_norm_->input_grad(ctx, saved.q_norm, d_source));
}

// Adds to dx.
void LatentAttention::latents_grad(Context& ctx, Saved& saved, const Tensor& dk, const Tensor& dv,
                                   const Tensor& dx) const {
  const auto& [nope, rope, value] = std::tie(options_.nope_dim, options_.rope_dim, options_.value_dim);
  const int64_t num_tokens = dk.dim(0);
  const int64_t heads = options_.num_heads;
  const int64_t rank = options_.kv_rank;
  const Tensor d_kv = ctx.arena.take("attention", ctx.dtype, {num_tokens, heads, nope + value});
  ctx.kernels.copy_columns(columns(dk, 0, nope), columns(d_kv, 0, nope));
  ctx.kernels.copy_columns(columns(dv, 0, value), columns(d_kv, nope, value));
  const Tensor d_latent = kv_norm_.input_grad(
      ctx, saved.kv_norm, kv_b_.input_grad(ctx, saved.kv_b, d_kv.reshape({num_tokens, heads * (nope + value)})));

  const Tensor d_turned = ctx.arena.take("attention", ctx.dtype, {num_tokens, 1, latent_dim()});
  ctx.kernels.copy_columns(columns(d_latent, 0, rank), columns(d_turned, 0, rank));
  ctx.kernels.sum_columns(columns(dk, nope, rope), columns(d_turned, rank, rope));
  ctx.kernels.rope(d_turned, saved.sequences.positions, rope_from(rank), RopeDirection::backward);
  kv_a_.input_grad_into(ctx, saved.kv_a, d_turned.reshape({num_tokens, latent_dim()}), dx, Accumulate::yes);
}

void LatentAttention::weight_grad(Context& ctx, const Saved& saved) {
  if (q_a_) {
    q_a_->weight_grad(ctx, saved.q_a);
    q_norm_->weight_grad(ctx, saved.q_norm);
  }
  q_.weight_grad(ctx, saved.q);
  kv_a_.weight_grad(ctx, saved.kv_a);
  kv_norm_.weight_grad(ctx, saved.kv_norm);
  kv_b_.weight_grad(ctx, saved.kv_b);
  o_proj_.weight_grad(ctx, saved.o_proj);
}

void LatentAttention::each_parameter(const ParameterVisitor& visit) {
  if (q_a_) {
    q_a_->each_parameter(visit);
    q_norm_->each_parameter(visit);
  }
  q_.each_parameter(visit);
  kv_a_.each_parameter(visit);
  kv_norm_.each_parameter(visit);
  kv_b_.each_parameter(visit);
  o_proj_.each_parameter(visit);
}

KvCache LatentAttention::make_cache(Context& ctx, int64_t batch, int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  cache.k = ctx.arena.take("kv cache", ctx.dtype, {batch * capacity, 1, latent_dim()});
  return cache;
}

void LatentAttention::append(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const {
  const ArenaScope scope(ctx.arena);
  Saved unused;
  Tensor turned;
  const Tensor latent = kv_norm_.forward(ctx, latents(ctx, x, tokens.positions, turned, unused), unused.kv_norm);
  each_sequence(cache, tokens, [&](int64_t row, int64_t first_cached, const NextTokens::Span& span) {
    const Tensor rows = cache.k.rows(first_cached + span.first, span.count);
    ctx.kernels.copy_columns(columns(latent.rows(row, span.count), 0, options_.kv_rank),
                             columns(rows, 0, options_.kv_rank));
    ctx.kernels.copy_columns(columns(turned.rows(row, span.count), options_.kv_rank, options_.rope_dim),
                             columns(rows, options_.kv_rank, options_.rope_dim));
  });
}

Tensor LatentAttention::decode(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const {
  append(ctx, x, tokens, cache);
  Saved unused;
  const Tensor q = queries(ctx, query_source(ctx, x, unused), tokens.positions, unused);
  const Tensor out =
      ctx.kernels.rows_independent() ? attend_expanded(ctx, q, tokens, cache) : attend_latents(ctx, q, tokens, cache);
  return o_proj_.forward(ctx, out.reshape({x.dim(0), options_.num_heads * options_.value_dim}), unused.o_proj);
}

// A key of head h is W_k,h c, so that q W_k,h c = (W_k,h^T q) c: all heads attend to the latent vectors themselves, as to
// one head whose values are part of its keys.
Tensor LatentAttention::attend_latents(Context& ctx, const Tensor& q, const NextTokens& tokens,
                                       const KvCache& cache) const {
  const auto& [nope, rope, value] = std::tie(options_.nope_dim, options_.rope_dim, options_.value_dim);
  const int64_t num_tokens = q.dim(0);
  const int64_t heads = options_.num_heads;
  const int64_t rank = options_.kv_rank;
  const Tensor& weight = kv_b_.weight().value;
  const Tensor latent_q = ctx.arena.take("attention", ctx.dtype, {num_tokens, heads, latent_dim()});
  ctx.kernels.head_linear_transposed(q, {weight, heads, 0, nope}, latent_q);
  ctx.kernels.copy_columns(columns(q, nope, rope), columns(latent_q, rank, rope));

  const Tensor latent_out = ctx.arena.take("attention", ctx.dtype, {num_tokens, heads, rank});
  each_sequence(cache, tokens, [&](int64_t row, int64_t first_cached, const NextTokens::Span& span) {
    const ArenaScope scope(ctx.arena);
    const int64_t length = span.first + span.count;
    const Tensor rows = cache.k.rows(first_cached, length);
    const Tensor lse = ctx.arena.take("attention", ctx.dtype, {1, heads, span.count});
    ctx.kernels.attention({1, span.count, length, length, heads, 1, latent_dim(), rank, scale()},
                          latent_q.rows(row, span.count), rows, rows, latent_out.rows(row, span.count), lse);
  });
  const Tensor out = ctx.arena.take("attention", ctx.dtype, {num_tokens, heads, value});
  ctx.kernels.head_linear(latent_out, {weight, heads, nope, value}, out);
  return out;
}

// To the keys and values of all heads, as forward makes them: slower.
Tensor LatentAttention::attend_expanded(Context& ctx, const Tensor& q, const NextTokens& tokens,
                                        const KvCache& cache) const {
  const int64_t heads = options_.num_heads;
  const Tensor out = ctx.arena.take("attention", ctx.dtype, {q.dim(0), heads, options_.value_dim});
  each_sequence(cache, tokens, [&](int64_t row, int64_t first_cached, const NextTokens::Span& span) {
    const ArenaScope scope(ctx.arena);
    const int64_t length = span.first + span.count;
    const Tensor rows = cache.k.rows(first_cached, length);
    const Tensor latent = ctx.arena.take("attention", ctx.dtype, {length, options_.kv_rank});
    ctx.kernels.copy_columns(columns(rows, 0, options_.kv_rank), columns(latent, 0, options_.kv_rank));
    Saved expanded;
    expand(ctx, latent, rows, expanded);
    const Tensor lse = ctx.arena.take("attention", ctx.dtype, {1, heads, span.count});
    ctx.kernels.attention({1, span.count, length, length, heads, heads, query_dim(), options_.value_dim, scale()},
                          q.rows(row, span.count), expanded.keys, expanded.values, out.rows(row, span.count), lse);
  });
  return out;
}

}  // namespace cadre
