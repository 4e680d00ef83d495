// SPDX-License-Identifier: Apache-2.0
// Consecutive layers of a model: what a pipeline passes micro-batches between. The first stage also embeds, the last
// also has the final norm, the head and the loss.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "layers/model/block.hpp"
#include "layers/model/expert_maps.hpp"
#include "layers/nn/embedding.hpp"
#include "layers/nn/head.hpp"

namespace cadre {

// The tokens of one micro-batch on this rank: ids and targets i32[T], T = batch * length; a target of -1 has no loss.
struct TokenBatch {
  Tensor ids;
  Tensor targets;
  Sequences sequences;
};

// Stage `index` of `count`.
struct StagePlace {
  int index = 0;
  int count = 1;

  bool is_first() const { return index == 0; }
  bool is_last() const { return index == count - 1; }
};

// Its layers, as even as possible: [first, last).
struct LayerRange {
  int first = 0;
  int last = 0;
};
LayerRange layers_of(const ModelConfig& config, const StagePlace& place);

class Stage {
 public:
  // With the experts that `maps` gives to `expert_rank`. Allocates nothing; does not move.
  Stage(const ModelConfig& config, const StagePlace& place, const ExpertMaps& maps, int expert_rank);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  struct Saved {
    Embedding::Saved embedding;
    std::vector<Block::Saved> blocks;  // of layers().first and on
    Norm::Saved norm;
    Head::Saved head;
  };

  struct Output {
    Tensor y;               // [T,H]; undefined after the last stage
    double loss_sum = 0.0;  // over this rank's tokens; the last stage only
  };

  // x [T,H] is what the stage before gave; the first stage reads the ids instead. Collective over the lane's expert group
  // and, in training, over its data group; any number of tokens on each rank. `ctx` and `saved` must outlive the task.
  Task<Output> forward(LaneContext& ctx, TokenBatch batch, Tensor x, Saved& saved) const;

  // When the gradients of parameters are to be complete.
  enum class Weights {
    at_once,  // when the task is over; temporary memory is given back block by block
    later,    // when ctx.deferred has run all that was pushed; until then memory and `saved` stay
  };
  // Called, in the order of ctx.deferred, each time that all weight gradients of one bucket have been added to.
  using BucketDone = std::function<void(int bucket)>;

  // Adds the gradients of (token_scale x losses + balance losses) to all parameters; dx [T,H] for the stage before, undefined
  // in the first. dy [T,H] is what the stage after gave; the last stage begins with its losses.
  Task<Tensor> backward(LaneContext& ctx, Saved& saved, Tensor dy, Weights weights, BucketDone done = {});

  // Logits [batch, V] of the last token of each sequence, whose new tokens are appended to the caches; before the last
  // stage hidden states [T,H].
  Task<Tensor> decode(LaneContext& ctx, Tensor ids, Tensor x, Sequences sequences, std::span<KvCache> caches) const;

  // Parameters in buckets that are complete together: embedding, each block, norm and head.
  int num_buckets() const { return static_cast<int>(blocks_.size()) + 2; }
  bool is_block(int bucket) const { return bucket > 0 && bucket < num_buckets() - 1; }
  void each_parameter(int bucket, const ParameterVisitor& visit);
  void each_parameter(const ParameterVisitor& visit);

  const StagePlace& place() const { return place_; }
  const LayerRange& layers() const { return layers_; }
  bool is_moe(int layer) const { return is_moe_layer(config_, layer); }  // any layer of the model
  Block& block(int layer) { return *blocks_[static_cast<size_t>(layer - layers_.first)]; }
  const Block& block(int layer) const { return *blocks_[static_cast<size_t>(layer - layers_.first)]; }

 private:
  Tensor enter(LaneContext& ctx, const TokenBatch& batch, const Tensor& x, Saved& saved) const;
  Output leave(LaneContext& ctx, const TokenBatch& batch, const Tensor& x, Saved& saved) const;
  Tensor begin_backward(LaneContext& ctx, Saved& saved, const Tensor& dy);

  ModelConfig config_;
  StagePlace place_;
  LayerRange layers_;
  std::optional<Embedding> embedding_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::optional<Norm> norm_;
  std::optional<Head> head_;
};

}  // namespace cadre
