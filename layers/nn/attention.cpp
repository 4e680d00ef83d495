// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/attention.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/nn/documents.hpp"

namespace cadre {
namespace {

// The pair, as a real number, that turns that often within the original length.
double pair_with_turns(double turns, double theta, int64_t dim, int64_t length) {
  return static_cast<double>(dim) * std::log(static_cast<double>(length) / (turns * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(theta));
}

}  // namespace

Rope plain_rope(double theta, int64_t dim, RopeLayout layout) {
  CADRE_CHECK(dim % 2 == 0, fmt::format("{} elements of a head turn with the position, which is odd", dim),
              "rotary positions turn pairs of elements");
  Rope rope;
  rope.layout = layout;
  for (int64_t i = 0; i < dim / 2; ++i) {
    rope.frequencies.push_back(std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim)));
  }
  return rope;
}

Rope yarn_rope(double theta, int64_t dim, RopeLayout layout, const YarnOptions& yarn) {
  Rope rope = plain_rope(theta, dim, layout);
  const int64_t length = yarn.original_max_position_embeddings;
  double low = pair_with_turns(yarn.beta_fast, theta, dim, length);
  double high = pair_with_turns(yarn.beta_slow, theta, dim, length);
  if (yarn.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < rope.frequencies.size(); ++i) {
    const double stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    rope.frequencies[i] *= stretched / yarn.factor + (1.0 - stretched);
  }
  rope.factor = yarn.attention_factor;
  if (rope.factor == 0.0) {
    rope.factor = yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim);
  }
  return rope;
}

double yarn_mscale(double factor, double m) { return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

void fill_positions(const Sequences& sequences, int64_t first) {
  auto* position = sequences.positions.data<int32_t>();
  for (const DocumentRun& run : document_runs(sequences)) {
    for (int64_t b = 0; b < run.batch; ++b) {
      for (int64_t t = 0; t < run.length; ++t) *position++ = static_cast<int32_t>(first + t);
    }
  }
}

NextTokens next_tokens(Arena& arena, std::vector<NextTokens::Span> spans) {
  int64_t num_tokens = 0;
  for (const NextTokens::Span& span : spans) num_tokens += span.count;
  const Tensor positions = arena.take_host("positions", DType::i32, {num_tokens});
  auto* position = positions.data<int32_t>();
  for (const NextTokens::Span& span : spans) {
    for (int64_t t = 0; t < span.count; ++t) *position++ = static_cast<int32_t>(span.first + t);
  }
  return {std::move(spans), positions};
}

void each_sequence(const KvCache& cache, const NextTokens& tokens, const CacheVisitor& body) {
  int64_t row = 0;
  int64_t first_cached = 0;
  for (const NextTokens::Span& span : tokens.spans) {
    CADRE_CHECK(span.first + span.count <= cache.capacity,
                fmt::format("{} more tokens do not fit a key/value cache of {} rows that holds {}", span.count,
                            cache.capacity, span.first),
                "ask for fewer new tokens or raise the longest sequence");
    if (span.count > 0) body(row, first_cached, span);
    row += span.count;
    first_cached += cache.capacity;
  }
}

CausalAttention::CausalAttention(const std::string& prefix, const AttentionOptions& options)
    : options_(options),
      q_proj_(prefix + ".q_proj", options.hidden, options.num_heads * options.head_dim, options.init_std,
              options.qkv_bias),
      k_proj_(prefix + ".k_proj", options.hidden, options.num_kv_heads * options.head_dim, options.init_std,
              options.qkv_bias),
      v_proj_(prefix + ".v_proj", options.hidden, options.num_kv_heads * options.head_dim, options.init_std,
              options.qkv_bias),
      o_proj_(prefix + ".o_proj", options.num_heads * options.head_dim, options.hidden, options.init_std,
              options.o_bias) {
  CADRE_ASSERT(2 * static_cast<int64_t>(options.rope.frequencies.size()) <= options.head_dim);
  CADRE_CHECK(
      options.num_kv_heads >= 1 && options.num_heads % options.num_kv_heads == 0,
      fmt::format("num_attention_heads = {}, num_key_value_heads = {}", options.num_heads, options.num_kv_heads),
      "the number of key/value heads must divide the number of heads");
  if (options.qk_norm == QkNorm::none) return;
  const auto norm_of = [&](int64_t num_heads) {
    const int64_t width = options.qk_norm == QkNorm::head ? options.head_dim : num_heads * options.head_dim;
    return NormOptions{.kind = NormKind::rms, .hidden = width, .epsilon = options.norm_epsilon};
  };
  q_norm_.emplace(prefix + ".q_norm", norm_of(options.num_heads));
  k_norm_.emplace(prefix + ".k_norm", norm_of(options.num_kv_heads));
}

int64_t CausalAttention::norm_width(const Tensor& rows) const {
  return options_.qk_norm == QkNorm::head ? options_.head_dim : rows.row_numel();
}

Tensor CausalAttention::normed(Context& ctx, const std::optional<Norm>& norm, const Tensor& rows,
                               Norm::Saved& saved) const {
  if (!norm) return rows;
  const int64_t width = norm_width(rows);
  return norm->forward(ctx, rows.reshape({rows.numel() / width, width}), saved)
      .reshape({rows.dim(0), rows.row_numel()});
}

Tensor CausalAttention::normed_grad(Context& ctx, const std::optional<Norm>& norm, const Tensor& dy,
                                    Norm::Saved& saved) const {
  if (!norm) return dy;
  const int64_t width = norm_width(dy);
  return norm->input_grad(ctx, saved, dy.reshape({dy.numel() / width, width})).reshape({dy.dim(0), dy.row_numel()});
}

Tensor CausalAttention::clipped(Context& ctx, const Tensor& rows, Tensor& unclipped) const {
  if (options_.clip == 0.0) return rows;
  unclipped = rows;
  const Tensor bounded = ctx.arena.take("attention", ctx.dtype, {rows.dim(0), rows.row_numel()});
  ctx.kernels.clip(options_.clip, rows, bounded);
  return bounded;
}

void CausalAttention::clipped_grad(Context& ctx, const Tensor& unclipped, const Tensor& dy) const {
  if (options_.clip > 0.0) ctx.kernels.clip_grad(options_.clip, unclipped, dy, dy);
}

AttentionShape CausalAttention::shape_of(int64_t batch, int64_t q_len, int64_t kv_len) const {
  return {.batch = batch,
          .q_len = q_len,
          .kv_len = kv_len,
          .kv_stride = kv_len,
          .num_heads = options_.num_heads,
          .num_kv_heads = options_.num_kv_heads,
          .head_dim = options_.head_dim,
          .value_dim = options_.head_dim,
          .scale = options_.score_factor / std::sqrt(static_cast<double>(options_.head_dim))};
}

Tensor CausalAttention::forward(Context& ctx, const Tensor& x, const Sequences& sequences, Saved& saved) const {
  const int64_t num_tokens = x.dim(0);
  const int64_t head_dim = options_.head_dim;
  saved.sequences = sequences;
  const Tensor q = normed(ctx, q_norm_, q_proj_.forward(ctx, x, saved.q_proj), saved.q_norm);
  const Tensor k = normed(ctx, k_norm_, k_proj_.forward(ctx, x, saved.k_proj), saved.k_norm);
  const Tensor v = v_proj_.forward(ctx, x, saved.v_proj);
  saved.q = clipped(ctx, q, saved.unclipped_q).reshape({num_tokens, options_.num_heads, head_dim});
  saved.k = clipped(ctx, k, saved.unclipped_k).reshape({num_tokens, options_.num_kv_heads, head_dim});
  saved.v = clipped(ctx, v, saved.unclipped_v).reshape({num_tokens, options_.num_kv_heads, head_dim});
  ctx.kernels.rope(saved.q, sequences.positions, options_.rope, RopeDirection::forward);
  ctx.kernels.rope(saved.k, sequences.positions, options_.rope, RopeDirection::forward);

  saved.out = ctx.arena.take("attention", ctx.dtype, {num_tokens, options_.num_heads * head_dim});
  saved.lse = ctx.arena.take("attention", ctx.dtype, {sequences.batch, options_.num_heads, sequences.length});
  attend_documents(ctx.kernels, shape_of(sequences.batch, sequences.length, sequences.length), sequences,
                   {saved.q, saved.k, saved.v, saved.out, saved.lse});
  return o_proj_.forward(ctx, saved.out, saved.o_proj);
}

Tensor CausalAttention::input_grad(Context& ctx, Saved& saved, const Tensor& dy) const {
  const int64_t num_tokens = dy.dim(0);
  const int64_t q_width = options_.num_heads * options_.head_dim;
  const int64_t kv_width = options_.num_kv_heads * options_.head_dim;
  const Sequences& sequences = saved.sequences;
  const Tensor dout = o_proj_.input_grad(ctx, saved.o_proj, dy);
  const Tensor dq = ctx.arena.take("attention", ctx.dtype, {num_tokens, options_.num_heads, options_.head_dim});
  const Tensor dk = ctx.arena.take("attention", ctx.dtype, {num_tokens, options_.num_kv_heads, options_.head_dim});
  const Tensor dv = ctx.arena.take("attention", ctx.dtype, {num_tokens, options_.num_kv_heads, options_.head_dim});

  attend_documents_grad(ctx.kernels, shape_of(sequences.batch, sequences.length, sequences.length), sequences,
                        {saved.q, saved.k, saved.v, saved.out, saved.lse}, dout, dq, dk, dv);
  ctx.kernels.rope(dq, sequences.positions, options_.rope, RopeDirection::backward);
  ctx.kernels.rope(dk, sequences.positions, options_.rope, RopeDirection::backward);

  clipped_grad(ctx, saved.unclipped_q, dq);
  clipped_grad(ctx, saved.unclipped_k, dk);
  clipped_grad(ctx, saved.unclipped_v, dv);
  const Tensor dq_proj = normed_grad(ctx, q_norm_, dq.reshape({num_tokens, q_width}), saved.q_norm);
  const Tensor dk_proj = normed_grad(ctx, k_norm_, dk.reshape({num_tokens, kv_width}), saved.k_norm);
  const Tensor dx = q_proj_.input_grad(ctx, saved.q_proj, dq_proj);
  k_proj_.input_grad_into(ctx, saved.k_proj, dk_proj, dx, Accumulate::yes);
  v_proj_.input_grad_into(ctx, saved.v_proj, dv.reshape({num_tokens, kv_width}), dx, Accumulate::yes);
  return dx;
}

void CausalAttention::weight_grad(Context& ctx, const Saved& saved) {
  q_proj_.weight_grad(ctx, saved.q_proj);
  k_proj_.weight_grad(ctx, saved.k_proj);
  v_proj_.weight_grad(ctx, saved.v_proj);
  o_proj_.weight_grad(ctx, saved.o_proj);
  if (q_norm_) q_norm_->weight_grad(ctx, saved.q_norm);
  if (k_norm_) k_norm_->weight_grad(ctx, saved.k_norm);
}

void CausalAttention::each_parameter(const ParameterVisitor& visit) {
  q_proj_.each_parameter(visit);
  k_proj_.each_parameter(visit);
  v_proj_.each_parameter(visit);
  o_proj_.each_parameter(visit);
  if (q_norm_) q_norm_->each_parameter(visit);
  if (k_norm_) k_norm_->each_parameter(visit);
}

KvCache CausalAttention::make_cache(Context& ctx, int64_t batch, int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  cache.k = ctx.arena.take("kv cache", ctx.dtype, {batch * capacity, options_.num_kv_heads, options_.head_dim});
  cache.v = ctx.arena.take("kv cache", ctx.dtype, {batch * capacity, options_.num_kv_heads, options_.head_dim});
  return cache;
}

// One product a sequence, so that keys and values are computed where they stay.
void CausalAttention::append(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const {
  const int64_t kv_width = options_.num_kv_heads * options_.head_dim;
  each_sequence(cache, tokens, [&](int64_t row, int64_t first_cached, const NextTokens::Span& span) {
    const Tensor new_x = x.rows(row, span.count);
    const Tensor new_k = cache.k.rows(first_cached + span.first, span.count);
    const Tensor new_v = cache.v.rows(first_cached + span.first, span.count);
    const ArenaScope scope(ctx.arena);
    const Tensor k_rows = new_k.reshape({span.count, kv_width});
    Saved unused;
    k_proj_.forward_into(ctx, new_x, unused.k_proj, k_rows);
    v_proj_.forward_into(ctx, new_x, unused.v_proj, new_v.reshape({span.count, kv_width}));
    if (k_norm_) ctx.kernels.copy(normed(ctx, k_norm_, k_rows, unused.k_norm), k_rows);
    if (options_.clip > 0.0) {
      ctx.kernels.clip(options_.clip, k_rows, k_rows);
      ctx.kernels.clip(options_.clip, new_v, new_v);
    }
    ctx.kernels.rope(new_k, tokens.positions.rows(row, span.count), options_.rope, RopeDirection::forward);
  });
}

Tensor CausalAttention::decode(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const {
  const int64_t num_tokens = x.dim(0);
  append(ctx, x, tokens, cache);

  Saved unused;
  const Tensor q_rows = normed(ctx, q_norm_, q_proj_.forward(ctx, x, unused.q_proj), unused.q_norm);
  const Tensor q =
      clipped(ctx, q_rows, unused.unclipped_q).reshape({num_tokens, options_.num_heads, options_.head_dim});
  ctx.kernels.rope(q, tokens.positions, options_.rope, RopeDirection::forward);
  const Tensor out = ctx.arena.take("attention", ctx.dtype, {num_tokens, options_.num_heads, options_.head_dim});
  each_sequence(cache, tokens, [&](int64_t row, int64_t first_cached, const NextTokens::Span& span) {
    const ArenaScope scope(ctx.arena);
    const int64_t length = span.first + span.count;
    const Tensor lse = ctx.arena.take("attention", ctx.dtype, {1, options_.num_heads, span.count});
    ctx.kernels.attention(shape_of(1, span.count, length), q.rows(row, span.count), cache.k.rows(first_cached, length),
                          cache.v.rows(first_cached, length), out.rows(row, span.count), lse);
  });
  return o_proj_.forward(ctx, out.reshape({num_tokens, options_.num_heads * options_.head_dim}), unused.o_proj);
}

}  // namespace cadre
