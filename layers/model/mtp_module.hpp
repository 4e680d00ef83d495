// SPDX-License-Identifier: Apache-2.0
// A module that learns to predict one token further than what it stands on (multi-token prediction; DeepSeek-V3, arXiv
// 2412.19437, section 2.2), as in the released weights: from the hidden state of a token and the embedding of the next
// one, through a whole layer, to the shared head:
//   x_i = eh_proj [enorm(Emb(t_i+1)) ; hnorm(h_i)],  y = Block(x),  loss_i = -log softmax(Head(shared_head.norm(y_i)))[t_i+2]
// Each module has one token a sequence less than what it stands on; t_i+1 and t_i+2 are of the document of t_i, or there is
// no loss. Embedding and head are those of the model. Row i has
// position, number and all other facts of token i. Its losses, balance losses too, are means over all T tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "layers/model/block.hpp"
#include "layers/nn/attention.hpp"
#include "layers/nn/embedding.hpp"

namespace cadre {

// The tokens of one micro-batch on this rank: ids and targets i32[T], T = batch * length; a target of -1 has no loss.
struct TokenBatch {
  Tensor ids;
  Tensor targets;
  Sequences sequences;
  Tensor weights = {};  // f32[T] in host memory, of the loss of each target; undefined: all are 1
};

class MtpModule {
 public:
  // Layer `index` of the model, counted on behind its last; parameters `model.layers.<index>.{enorm,hnorm,shared_head.norm,
  // eh_proj}.weight` and those of a block.
  MtpModule(const ModelConfig& config, int index, const ExpertMap& map, int expert_rank);

  struct Saved {
    TokenBatch batch;                // what it reads and predicts
    std::optional<LaneContext> ctx;  // of the block: the caller's, with the facts of these rows
    Tensor kept;                     // i32[T']: rows of h
    int64_t num_rows = 0;            // T, of h
    Embedding::Saved embedding;
    Norm::Saved enorm, hnorm, head_norm;
    Linear::Saved eh_proj;
    Block::Saved block;
    Head::Saved head;
  };

  struct Output {
    Tensor y;  // [T',H]: what the next module stands on
    double loss_sum = 0.0;
  };

  // h [T,H] belongs to the tokens of `batch`, of which ctx.tokens has the facts: the final norm's output, or y of the module
  // before, whose batch and context those then are. `ctx` and `saved` must outlive the backward pass.
  Task<Output> forward(LaneContext& ctx, TokenBatch batch, Tensor h, const Embedding& embedding, const Head& head,
                       Saved& saved) const;
  // Of scale times the losses, plus dy [T',H] from the next module, undefined behind the last. Adds to dh [T,H]. Weight
  // gradients go to ctx.deferred, those of embedding and head too.
  Task<void> backward(LaneContext& ctx, Saved& saved, double scale, Tensor dy, Embedding& embedding, Head& head,
                      Tensor dh);
  void each_parameter(const ParameterVisitor& visit);

  // Of sequences with a cache: h [T,H] and ids i32[T], the tokens after those that h belongs to, to y [T,H]. As in forward,
  // the token of h has its position.
  Task<Tensor> decode(LaneContext& ctx, Tensor ids, Tensor h, NextTokens tokens, KvCache& cache,
                      const Embedding& embedding) const;
  // What y [T,H] predicts, [T,V].
  Tensor logits(Context& ctx, const Tensor& y, const Head& head) const;

  Block& block() { return block_; }
  const Block& block() const { return block_; }

 private:
  Tensor join(Context& ctx, const Tensor& ids, const Tensor& h, const Embedding& embedding, Saved& saved) const;
  void shift(LaneContext& ctx, const TokenBatch& batch, Saved& saved) const;
  void add_kept_rows(Context& ctx, const Saved& saved, const Tensor& rows, const Tensor& dh) const;

  int64_t hidden_;
  Norm enorm_;
  Norm hnorm_;
  Linear eh_proj_;
  Block block_;
  Norm head_norm_;
};

}  // namespace cadre
