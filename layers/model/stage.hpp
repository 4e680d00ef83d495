// SPDX-License-Identifier: Apache-2.0
// Consecutive layers of a model: what a pipeline passes micro-batches between. The first stage also embeds, the last
// also has the final norm, the head and the loss, and the MTP modules. Those, and a head that is
// the embedding table, need the embedding beside the head: where that is another stage, it has a copy. Whoever trains both
// must add up the gradients of table and copy; their values are then the same bits at any time.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "layers/model/mtp_module.hpp"
#include "layers/model/stage_place.hpp"

namespace cadre {

// Whether the end of the model reads the embedding too.
bool embeds_at_end(const ModelConfig& config);

class Stage {
 public:
  // With the experts that `maps` gives to `expert_rank`. Allocates nothing; does not move.
  Stage(const ModelConfig& config, const StagePlace& place, const ExpertMaps& maps, int expert_rank);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  struct Saved {
    Embedding::Saved embedding;
    std::vector<Block::Saved> blocks;  // of layers().first and on
    std::vector<Tensor> inputs;        // of blocks that are computed once more; else undefined
    Sequences sequences;
    Norm::Saved norm;
    Head::Saved head;
    std::vector<MtpModule::Saved> mtp;  // empty outside of training
  };

  struct Output {
    Tensor y;                   // [T,H]; undefined after the last stage
    double loss_sum = 0.0;      // over this rank's tokens; the last stage only
    double mtp_loss_sum = 0.0;  // the same of the MTP modules, their mean
  };

  // x [T,H] is what the stage before gave; the first stage reads the ids instead. Collective over the lane's expert group
  // and, in training, over its data group; any number of tokens on each rank. `ctx` and `saved` must outlive the task.
  Task<Output> forward(LaneContext& ctx, TokenBatch batch, Tensor x, Saved& saved) const;

  // When the gradients of parameters are to be complete.
  enum class Weights {
    at_once,  // when the task is over; temporary memory is given back block by block
    later,    // when ctx.deferred has run all that was pushed; until then memory and `saved` stay
  };
  // Called in the order of ctx.deferred, once a bucket.
  struct BucketCalls {
    std::function<void(int bucket)> begin;  // before the first weight gradient is added to
    std::function<void(int bucket)> done;   // when all of them have been
  };

  // Adds the gradients of (loss_scale x losses + balance losses) to all parameters, where the losses are those of the head
  // plus mtp_loss_factor times the mean of the MTP modules; dx [T,H] for the stage before, undefined
  // in the first. dy [T,H] is what the stage after gave; the last stage begins with its losses.
  Task<Tensor> backward(LaneContext& ctx, Saved& saved, Tensor dy, Weights weights, BucketCalls calls = {});

  // The next tokens of sequences with caches, one of each layer, which hold them afterwards; ids i32[T], of which the first
  // stage makes rows. Hidden states [T,H], of the last stage behind the final norm. Collective as forward.
  Task<Tensor> decode(LaneContext& ctx, Tensor ids, Tensor x, NextTokens tokens, std::span<KvCache> caches) const;
  // Of rows that the last stage decoded, [T,V].
  Tensor logits(Context& ctx, const Tensor& rows) const { return head_->logits(ctx, rows); }

  // MTP modules, in the last stage.
  int num_mtp() const { return static_cast<int>(mtp_.size()); }
  const MtpModule& mtp(int module) const { return *mtp_[static_cast<size_t>(module)]; }
  // What module `module` makes of h, see MtpModule::decode, and of that the logits.
  Task<Tensor> decode_mtp(LaneContext& ctx, int module, Tensor ids, Tensor h, NextTokens tokens, KvCache& cache) const;
  Tensor mtp_logits(Context& ctx, int module, const Tensor& y) const;

  // Parameters in buckets that are complete together: embedding, each block, all behind the blocks.
  int num_buckets() const { return static_cast<int>(blocks_.size()) + 2; }
  bool is_block(int bucket) const { return bucket > 0 && bucket < num_buckets() - 1; }
  // Whether the end of this stage reads the embedding that it begins with. Its bucket then begins with the last one.
  bool embeds_at_both_ends() const { return head_ && embedding_ && embeds_at_end(config_); }
  // Of a layer of this stage.
  int bucket_of(int layer) const { return std::min(layer - layers_.first + 1, num_buckets() - 1); }
  void each_parameter(int bucket, const ParameterVisitor& visit);
  void each_parameter(const ParameterVisitor& visit);

  const ModelConfig& config() const { return config_; }
  const StagePlace& place() const { return place_; }
  const LayerRange& layers() const { return layers_; }
  // The table of the embedding in the first stage, and its copy in the last one, where that needs one; else nullptr.
  Parameter* embedding_table() { return embedding_ ? &embedding_->table() : nullptr; }
  Parameter* embedding_copy() { return embedding_copy_ ? &embedding_copy_->table() : nullptr; }
  // Layers from num_hidden_layers on are the MTP modules, behind the last stage.
  bool has(int layer) const;
  Block& block(int layer);
  const Block& block(int layer) const { return *blocks_[static_cast<size_t>(layer - layers_.first)]; }
  // What a layer of this stage saved; nullptr where it did not run.
  const Block::Saved* saved_of(const Saved& saved, int layer) const;
  // The input of a layer that the backward pass computes once more: its saved tensors are gone. Else nullptr.
  const Tensor* recomputed_from(const Saved& saved, int layer) const;

 private:
  void make_embedding();
  void make_end(const ExpertMaps& maps, int expert_rank);
  Embedding& embedding_at_end() { return embedding_ ? *embedding_ : *embedding_copy_; }
  const Embedding& embedding_at_end() const { return embedding_ ? *embedding_ : *embedding_copy_; }
  Task<void> wait_for_values(LaneContext& ctx, int bucket) const;
  Task<Tensor> forward_block(LaneContext& ctx, size_t block, Tensor x, Saved& saved) const;
  Tensor enter(LaneContext& ctx, const TokenBatch& batch, const Tensor& x, Saved& saved) const;
  Task<Output> leave(LaneContext& ctx, TokenBatch batch, Tensor x, Saved& saved) const;
  Task<double> predict_mtp(LaneContext& ctx, TokenBatch batch, Tensor normed, Saved& saved) const;
  Task<Tensor> begin_backward(LaneContext& ctx, Saved& saved, Weights weights);
  Task<void> mtp_backward(LaneContext& ctx, Saved& saved, Tensor d_normed, Weights weights);

  ModelConfig config_;
  StagePlace place_;
  LayerRange layers_;
  std::optional<Embedding> embedding_;       // of the first stage
  std::optional<Embedding> embedding_copy_;  // of the last one
  std::vector<std::unique_ptr<Block>> blocks_;
  std::optional<Norm> norm_;
  std::optional<Head> head_;
  std::vector<std::unique_ptr<MtpModule>> mtp_;
};

}  // namespace cadre
