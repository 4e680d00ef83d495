// SPDX-License-Identifier: Apache-2.0
// A causal language model, or those stages of it that one rank holds.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layers/model/adapter.hpp"
#include "layers/model/stage.hpp"

namespace cadre {

class Model {
 public:
  // The whole model, with the experts that `maps` gives to `expert_rank`. Allocates nothing; does not move.
  Model(const ModelConfig& config, const ExpertMaps& maps, int expert_rank);
  // The given stages, in ascending order; with adapters where their rank is not 0.
  Model(const ModelConfig& config, const std::vector<StagePlace>& places, const ExpertMaps& maps, int expert_rank,
        const AdapterOptions& adapter = {});
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // The stage of that index in the pipeline, one of those that are here.
  Stage& stage(int index);
  const std::vector<std::unique_ptr<Stage>>& stages() const { return stages_; }
  // The stage that has the layer; nullptr where none of those that are here does.
  Stage* stage_with(int layer);

  // Of the whole model; Stage says more.
  struct Saved {
    std::vector<Stage::Saved> stages;
  };
  Task<double> forward(LaneContext& ctx, TokenBatch batch, Saved& saved) const;
  Task<void> backward(LaneContext& ctx, Saved& saved);
  // Of each layer, those of MTP modules last, for `batch` sequences of up to `capacity` tokens.
  std::vector<KvCache> make_caches(Context& ctx, int64_t batch, int64_t capacity) const;
  // The next tokens of sequences with these caches, to rows [T,H] behind the final norm, which Stage::logits reads.
  Task<Tensor> decode(LaneContext& ctx, Tensor ids, NextTokens tokens, std::vector<KvCache>& caches) const;
  // The end of the model, where it is here.
  const Stage& last_stage() const { return *stages_.back(); }

  void each_parameter(const ParameterVisitor& visit);

  const ModelConfig& config() const { return config_; }

 private:
  ModelConfig config_;
  std::vector<std::unique_ptr<Stage>> stages_;
};

// Indices of all layers that are mixtures, ascending, those of MTP modules last.
std::vector<int> moe_layers_of(const ModelConfig& config);

// The experts of a rank, also for a model without any (then one that nobody routes to).
ExpertMap make_expert_map(const ModelConfig& config, int num_ranks);

}  // namespace cadre
