// SPDX-License-Identifier: Apache-2.0
#include "layers/model/model.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

std::vector<int> moe_layers_of(const ModelConfig& config) {
  std::vector<int> layers;
  for (int layer = 0; layer < config.num_hidden_layers + config.num_nextn_predict_layers; ++layer) {
    if (is_moe_layer(config, layer)) layers.push_back(layer);
  }
  return layers;
}

ExpertMap make_expert_map(const ModelConfig& config, int num_ranks) {
  return ExpertMap::contiguous(static_cast<int>(std::max<int64_t>(1, config.n_routed_experts)), num_ranks);
}

Model::Model(const ModelConfig& config, const ExpertMaps& maps, int expert_rank)
    : Model(config, {StagePlace()}, maps, expert_rank) {}

Model::Model(const ModelConfig& config, const std::vector<StagePlace>& places, const ExpertMaps& maps, int expert_rank,
             const AdapterOptions& adapter)
    : config_(config) {
  for (const StagePlace& place : places) stages_.push_back(std::make_unique<Stage>(config, place, maps, expert_rank));
  if (adapter.rank == 0) return;
  add_adapters(config, adapter, [this](const ParameterVisitor& visit) { each_parameter(visit); });
}

Stage& Model::stage(int index) {
  const auto found = std::ranges::find_if(stages_, [&](const auto& stage) { return stage->place().index == index; });
  CADRE_ASSERT(found != stages_.end());
  return **found;
}

Stage* Model::stage_with(int layer) {
  const auto found = std::ranges::find_if(stages_, [&](const auto& stage) { return stage->has(layer); });
  return found == stages_.end() ? nullptr : found->get();
}

Task<double> Model::forward(LaneContext& ctx, TokenBatch batch, Saved& saved) const {
  saved.stages.resize(stages_.size());
  Stage::Output output;
  for (size_t i = 0; i < stages_.size(); ++i) {
    Task<Stage::Output> stage = stages_[i]->forward(ctx, batch, output.y, saved.stages[i]);
    output = co_await stage;
  }
  co_return output.loss_sum;
}

Task<void> Model::backward(LaneContext& ctx, Saved& saved) {
  Tensor dy;
  for (size_t i = stages_.size(); i-- > 0;) {
    Task<Tensor> stage = stages_[i]->backward(ctx, saved.stages[i], dy, Stage::Weights::at_once);
    dy = co_await stage;
  }
}

Task<Tensor> Model::decode(LaneContext& ctx, Tensor ids, NextTokens tokens, std::vector<KvCache>& caches) const {
  Tensor x;
  for (const auto& stage : stages_) {
    const LayerRange layers = stage->layers();
    Task<Tensor> pass = stage->decode(ctx, ids, x, tokens, std::span(caches).subspan(layers.first));
    x = co_await pass;
  }
  co_return x;
}

std::vector<KvCache> Model::make_caches(Context& ctx, int64_t batch, int64_t capacity) const {
  std::vector<KvCache> caches;
  for (const auto& stage : stages_) {
    for (int layer = stage->layers().first; layer < stage->layers().last; ++layer) {
      caches.push_back(std::as_const(*stage).block(layer).attention().make_cache(ctx, batch, capacity));
    }
  }
  for (int i = 0; i < last_stage().num_mtp(); ++i) {
    caches.push_back(last_stage().mtp(i).block().attention().make_cache(ctx, batch, capacity));
  }
  return caches;
}

void Model::each_parameter(const ParameterVisitor& visit) {
  for (const auto& stage : stages_) stage->each_parameter(visit);
}

}  // namespace cadre
