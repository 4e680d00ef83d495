// SPDX-License-Identifier: Apache-2.0
#include "layers/model/model.hpp"

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

double sum_of(const Tensor& losses) {
  double sum = 0.0;
  for (int64_t t = 0; t < losses.numel(); ++t) {
    sum += losses.dtype() == DType::f64 ? losses.data<double>()[t] : static_cast<double>(losses.data<float>()[t]);
  }
  return sum;
}

// The last row of each sequence.
Tensor last_rows(Context& ctx, const Tensor& x, const Sequences& sequences) {
  const Tensor index = ctx.arena.take("decode", DType::i32, {sequences.batch});
  for (int64_t b = 0; b < sequences.batch; ++b) {
    index.data<int32_t>()[b] = static_cast<int32_t>((b + 1) * sequences.length - 1);
  }
  const Tensor rows = ctx.arena.take("decode", ctx.dtype, {sequences.batch, x.dim(1)});
  ctx.kernels.gather_rows(x, index, Tensor(), rows);
  return rows;
}

}  // namespace

ExpertMap make_expert_map(const ModelConfig& config, int num_ranks) {
  return ExpertMap::contiguous(static_cast<int>(std::max<int64_t>(1, config.n_routed_experts)), num_ranks);
}

Model::Model(const ModelConfig& config, const ExpertMap& map, int expert_rank)
    : config_(config),
      map_(map),
      embedding_("model.embed_tokens", config.vocab_size, config.hidden_size, config.initializer_range),
      norm_("model.norm", norm_options(config)),
      head_("lm_head", config.hidden_size, config.vocab_size, config.initializer_range) {
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    blocks_.push_back(std::make_unique<Block>(config, layer, map, expert_rank));
    if (is_moe_layer(config, layer)) moe_layers_.push_back(layer);
  }
}

Task<double> Model::forward(LaneContext& ctx, TokenBatch batch, Saved& saved) const {
  saved.blocks.resize(blocks_.size());
  Tensor x = embedding_.forward(ctx, batch.ids, saved.embedding);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    Task<Tensor> block = blocks_[layer]->forward(ctx, x, batch.sequences, saved.blocks[layer]);
    x = co_await block;
  }
  const Tensor normed = norm_.forward(ctx, x, saved.norm);
  const Tensor losses = head_.forward(ctx, normed, batch.targets, saved.head);
  co_return ctx.arena.is_dry_run() ? 0.0 : sum_of(losses);
}

Task<void> Model::backward(LaneContext& ctx, Saved& saved) {
  ctx.lane.position.layer = -1;
  const Tensor d_normed = head_.input_grad(ctx, saved.head, ctx.token_scale);
  head_.weight_grad(ctx, saved.head);
  Tensor dy = norm_.input_grad(ctx, saved.norm, d_normed);
  norm_.weight_grad(ctx, saved.norm);
  Tensor dx = ctx.arena.take("gradient", ctx.dtype, {dy.dim(0), dy.dim(1)});
  for (size_t layer = blocks_.size(); layer-- > 0;) {
    ArenaScope scope(ctx.arena);
    Task<void> block = blocks_[layer]->input_grad(ctx, saved.blocks[layer], dy, dx);
    co_await block;
    blocks_[layer]->weight_grad(ctx, saved.blocks[layer]);
    std::swap(dx, dy);
  }
  embedding_.input_grad(ctx, saved.embedding, dy);
  embedding_.weight_grad(ctx, saved.embedding);
}

Task<Tensor> Model::decode(LaneContext& ctx, Tensor ids, Sequences sequences, std::vector<KvCache>& caches) const {
  Embedding::Saved embedding;
  Norm::Saved norm;
  Tensor x = embedding_.forward(ctx, ids, embedding);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    Task<Tensor> block = blocks_[layer]->decode(ctx, x, sequences, caches[layer]);
    x = co_await block;
  }
  co_return head_.logits(ctx, norm_.forward(ctx, last_rows(ctx, x, sequences), norm));
}

std::vector<KvCache> Model::make_caches(Context& ctx, int64_t batch, int64_t capacity) const {
  std::vector<KvCache> caches;
  for (const auto& block : blocks_) caches.push_back(block->attention().make_cache(ctx, batch, capacity));
  return caches;
}

void Model::each_parameter(const ParameterVisitor& visit) {
  embedding_.each_parameter(visit);
  for (const auto& block : blocks_) block->each_parameter(visit);
  norm_.each_parameter(visit);
  head_.each_parameter(visit);
}

}  // namespace cadre
