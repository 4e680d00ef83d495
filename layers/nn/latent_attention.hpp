// SPDX-License-Identifier: Apache-2.0
// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values of all heads come from one
// short latent vector a token; positions turn extra elements, whose key part is one head that all share. A form for whole
// sequences, with gradients, and an absorbed form for decoding, which keeps the latent vector and the turned key only and
// never makes keys or values. Both give the same outputs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "layers/nn/attention.hpp"
#include "layers/nn/norm.hpp"

namespace cadre {

struct LatentAttentionOptions {
  int64_t hidden = 0;
  int64_t num_heads = 0;
  int64_t q_rank = 0;         // QL: width of the latent query; 0: queries come straight from x
  int64_t kv_rank = 0;        // L: width of the latent of keys and values
  int64_t nope_dim = 0;       // N: elements of a query or key that know no position
  int64_t rope_dim = 0;       // R: those that turn; even
  int64_t value_dim = 0;      // V
  Rope rope;                  // of R elements
  double score_factor = 1.0;  // multiplies (N + R)^-1/2
  double norm_epsilon = 1e-6;
  double init_std = 0.02;
  Linear::Bias bias = Linear::Bias::none;  // of q_a_proj, kv_a_proj_with_mqa and o_proj
};

// Parameters under `<prefix>.`: kv_a_proj_with_mqa.weight [L + R, H], kv_a_layernorm.weight [L], kv_b_proj.weight
// [NH (N + V), L], o_proj.weight [H, NH V]; and q_a_proj.weight [QL, H], q_a_layernorm.weight [QL], q_b_proj.weight
// [NH (N + R), QL], or without a latent query q_proj.weight [NH (N + R), H]. With a bias also those of q_a_proj [QL],
// kv_a_proj_with_mqa [L + R] and o_proj [H].
class LatentAttention {
 public:
  LatentAttention(const std::string& prefix, const LatentAttentionOptions& options);

  struct Saved {
    Sequences sequences;
    Linear::Saved q_a, q, kv_a, kv_b, o_proj;
    Norm::Saved q_norm, kv_norm;
    Tensor source;  // [T, QL], what queries are made from; x without a latent query
    Tensor latent;  // [T, L], what keys and values are made from
    Tensor turned;  // [T, 1, L + R], the latent with the turned key behind it
    // These three are made once more in the backward pass with Recompute::mla_up.
    Tensor queries;  // [T, NH, N + R], turned
    Tensor keys;     // [T, NH, N + R]
    Tensor values;   // [T, NH, V]
    Tensor out;      // [T, NH V], before o_proj
    Tensor lse;
  };

  Tensor forward(Context& ctx, const Tensor& x, const Sequences& sequences, Saved& saved) const;  // x, y [T,H]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

  // An empty cache: L + R elements a token, the normed latent vector and the turned key, in k; v stays undefined.
  KvCache make_cache(Context& ctx, int64_t batch, int64_t capacity) const;
  // x, y [T,H]. Writes the next tokens into the cache and attends to what it holds up to them. Throws when it is full. With
  // Kernels::rows_independent, the bits of forward.
  Tensor decode(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const;

 private:
  int64_t query_dim() const { return options_.nope_dim + options_.rope_dim; }
  int64_t latent_dim() const { return options_.kv_rank + options_.rope_dim; }
  double scale() const;
  Rope rope_from(int64_t first) const;

  Tensor query_source(Context& ctx, const Tensor& x, Saved& saved) const;
  Tensor queries(Context& ctx, const Tensor& source, const Tensor& positions, Saved& saved) const;
  // [T, L], and into `turned` [T, 1, L + R] the same with the key turned behind it.
  Tensor latents(Context& ctx, const Tensor& x, const Tensor& positions, Tensor& turned, Saved& saved) const;
  void project_up(Context& ctx, Saved& saved) const;
  void expand(Context& ctx, const Tensor& latent, const Tensor& turned, Saved& saved) const;
  Tensor queries_grad(Context& ctx, Saved& saved, const Tensor& dq) const;
  void latents_grad(Context& ctx, Saved& saved, const Tensor& dk, const Tensor& dv, const Tensor& dx) const;
  void append(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const;
  Tensor attend_latents(Context& ctx, const Tensor& q, const NextTokens& tokens, const KvCache& cache) const;
  Tensor attend_expanded(Context& ctx, const Tensor& q, const NextTokens& tokens, const KvCache& cache) const;

  LatentAttentionOptions options_;
  std::optional<Linear> q_a_;
  std::optional<Norm> q_norm_;
  Linear q_;
  Linear kv_a_;
  Norm kv_norm_;
  Linear kv_b_;
  Linear o_proj_;
};

}  // namespace cadre
