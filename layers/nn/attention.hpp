// SPDX-License-Identifier: Apache-2.0
// Causal multi-head attention with rotary positions and grouped key/value heads (Ainslie et al. 2023): a form for whole
// sequences, with gradients, and a form for decoding with a cache. Both give the same outputs.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "layers/kernels/kernels.hpp"
#include "layers/nn/linear.hpp"
#include "layers/nn/norm.hpp"

namespace cadre {

// The frequencies of rotary positions, plain or stretched to longer texts by YaRN (Peng et al. 2023, arXiv 2309.00071) in
// the form of DeepSeek-V2 and V3.
struct YarnOptions {
  double factor = 1.0;  // how many times longer texts become
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 1.0;
  double mscale_all_dim = 0.0;
  int64_t original_max_position_embeddings = 4096;
  double attention_factor = 0.0;  // 0: from mscale and mscale_all_dim
  bool truncate = true;
};

// Pairs of `dim` elements, an even number, that turn by theta^(-2i / dim).
Rope plain_rope(double theta, int64_t dim, RopeLayout layout);

// Pairs that turn more than beta_fast times within the original length keep their frequency, those below beta_slow turns
// get it divided by `factor`, those between a mixture; with `truncate` the first and the last of these are rounded outwards to
// whole pairs. The factor of all is attention_factor, or mscale(mscale) / mscale(mscale_all_dim), see yarn_mscale.
Rope yarn_rope(double theta, int64_t dim, RopeLayout layout, const YarnOptions& yarn);

// 1 for factor <= 1, else 0.1 m ln(factor) + 1. Its square, with m = mscale_all_dim, multiplies the softmax scale.
double yarn_mscale(double factor, double m);

// Sequences of equal length, stored one after the other. Each may be packed from whole documents, whose tokens see nothing
// of each other.
struct Sequences {
  int64_t batch = 0;
  int64_t length = 0;                   // tokens of each in this call
  Tensor positions;                     // i32[batch length]: absolute, 0 for the first token of a document
  std::vector<int64_t> documents = {};  // lengths in row order, batch length tokens in all; empty: one a sequence
};

// Writes first, first + 1, .. for each of the documents into `positions` (host memory).
void fill_positions(const Sequences& sequences, int64_t first);

// RMSNorm of queries and keys before they turn: none, of each head (one gain [D] for all), or of all heads together (gains
// [NH D] and [NKV D]).
enum class QkNorm { none, head, full };

struct AttentionOptions {
  int64_t hidden = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;   // divides num_heads
  int64_t head_dim = 0;       // D
  Rope rope;                  // of the first elements of a head, the rest stay
  double score_factor = 1.0;  // multiplies head_dim^-1/2
  double init_std = 0.02;
  QkNorm qk_norm = QkNorm::none;
  double norm_epsilon = 1e-6;  // of qk_norm
  double clip = 0.0;  // behind the norm, before they turn: queries, keys and values to -clip .. clip; 0: as they are
  Linear::Bias qkv_bias = Linear::Bias::none;
  Linear::Bias o_bias = Linear::Bias::none;
};

// Tokens that sequences with caches go on with: those of one sequence in a row, one sequence after the other.
struct NextTokens {
  // Of one sequence, positions first .. first + count. It has `first` tokens before them in its cache; what the cache holds
  // of later ones is forgotten.
  struct Span {
    int64_t first = 0;
    int64_t count = 0;
  };
  std::vector<Span> spans;
  Tensor positions;  // i32[T]
};

// Positions come from the arena.
NextTokens next_tokens(Arena& arena, std::vector<NextTokens::Span> spans);

// Keys (rotated) and values of `batch` sequences: row j of sequence b is row b * capacity + j of [batch capacity, NKV,
// D]. Latent attention keeps other rows.
struct KvCache {
  Tensor k;
  Tensor v;
  int64_t capacity = 0;  // rows for each sequence
};

// Calls `body` for each sequence that has next tokens: `row` is the first of them among T, `first_cached` the row of the
// cache in which the sequence begins. Throws when they do not fit.
using CacheVisitor = std::function<void(int64_t row, int64_t first_cached, const NextTokens::Span& span)>;
void each_sequence(const KvCache& cache, const NextTokens& tokens, const CacheVisitor& body);

// Parameters: `<prefix>.q_proj.weight` [NH D, H], `<prefix>.{k,v}_proj.weight` [NKV D, H], `<prefix>.o_proj.weight`
// [H, NH D], their biases, and `<prefix>.{q,k}_norm.weight`, as the options say.
class CausalAttention {
 public:
  CausalAttention(const std::string& prefix, const AttentionOptions& options);

  struct Saved {
    Sequences sequences;
    Linear::Saved q_proj, k_proj, v_proj, o_proj;
    Norm::Saved q_norm, k_norm;
    Tensor unclipped_q, unclipped_k, unclipped_v;
    Tensor q, k;  // after rotation
    Tensor v;
    Tensor out;  // before o_proj
    Tensor lse;
  };

  Tensor forward(Context& ctx, const Tensor& x, const Sequences& sequences, Saved& saved) const;  // x, y [T,H]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

  // An empty cache for `batch` sequences of up to `capacity` tokens.
  KvCache make_cache(Context& ctx, int64_t batch, int64_t capacity) const;
  // x, y [T,H]. Writes the next tokens into the cache and attends to what it holds up to them. Throws when it is full.
  Tensor decode(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const;

 private:
  AttentionShape shape_of(int64_t batch, int64_t q_len, int64_t kv_len) const;
  void append(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const;
  // rows [T, N D] of N heads.
  Tensor normed(Context& ctx, const std::optional<Norm>& norm, const Tensor& rows, Norm::Saved& saved) const;
  Tensor normed_grad(Context& ctx, const std::optional<Norm>& norm, const Tensor& dy, Norm::Saved& saved) const;
  int64_t norm_width(const Tensor& rows) const;
  // The rows in their bounds; `unclipped` keeps what they were for clipped_grad, which changes dy.
  Tensor clipped(Context& ctx, const Tensor& rows, Tensor& unclipped) const;
  void clipped_grad(Context& ctx, const Tensor& unclipped, const Tensor& dy) const;

  AttentionOptions options_;
  Linear q_proj_;
  Linear k_proj_;
  Linear v_proj_;
  Linear o_proj_;
  std::optional<Norm> q_norm_, k_norm_;
};

}  // namespace cadre
