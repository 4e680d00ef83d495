// SPDX-License-Identifier: Apache-2.0
// A causal language model: embedding, blocks, final norm, head.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layers/model/block.hpp"
#include "layers/nn/embedding.hpp"
#include "layers/nn/head.hpp"

namespace cadre {

// The tokens of one micro-batch on this rank: ids and targets i32[T], T = batch * length; a target of -1 has no loss.
struct TokenBatch {
  Tensor ids;
  Tensor targets;
  Sequences sequences;
};

class Model {
 public:
  // With the experts that `map` gives to `expert_rank`. Allocates nothing; does not move.
  Model(const ModelConfig& config, const ExpertMap& map, int expert_rank);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  struct Saved {
    Embedding::Saved embedding;
    std::vector<Block::Saved> blocks;
    Norm::Saved norm;
    Head::Saved head;
  };

  // The sum of the losses over this rank's tokens. Collective over the lane's expert group, forward in training also over
  // its data group; any number of tokens on each rank. `ctx` and `saved` must outlive the task.
  Task<double> forward(LaneContext& ctx, TokenBatch batch, Saved& saved) const;
  // Adds the gradients of (token_scale x losses + balance losses) to all parameters.
  Task<void> backward(LaneContext& ctx, Saved& saved);
  // Logits [batch, V] of the last token of each sequence, whose new tokens are appended to the caches.
  Task<Tensor> decode(LaneContext& ctx, Tensor ids, Sequences sequences, std::vector<KvCache>& caches) const;
  std::vector<KvCache> make_caches(Context& ctx, int64_t batch, int64_t capacity) const;

  void each_parameter(const ParameterVisitor& visit);

  const ModelConfig& config() const { return config_; }
  // Indices of the layers that are mixtures, ascending.
  const std::vector<int>& moe_layers() const { return moe_layers_; }
  Block& block(int layer) { return *blocks_[static_cast<size_t>(layer)]; }
  const ExpertMap& expert_map() const { return map_; }

 private:
  ModelConfig config_;
  ExpertMap map_;
  Embedding embedding_;
  std::vector<std::unique_ptr<Block>> blocks_;
  Norm norm_;
  Head head_;
  std::vector<int> moe_layers_;
};

// The experts of a rank, also for a model without any (then one that nobody routes to).
ExpertMap make_expert_map(const ModelConfig& config, int num_ranks);

}  // namespace cadre
