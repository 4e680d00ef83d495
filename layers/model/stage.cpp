// SPDX-License-Identifier: Apache-2.0
#include "layers/model/stage.hpp"

#include <utility>

#include "comm/base/check.hpp"

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

constexpr int kEmbeddingBucket = 0;

}  // namespace

LayerRange layers_of(const ModelConfig& config, const StagePlace& place) {
  const int64_t layers = config.num_hidden_layers;
  return {static_cast<int>(layers * place.index / place.count),
          static_cast<int>(layers * (place.index + 1) / place.count)};
}

Stage::Stage(const ModelConfig& config, const StagePlace& place, const ExpertMaps& maps, int expert_rank)
    : config_(config), place_(place), layers_(layers_of(config, place)) {
  if (place.is_first()) {
    embedding_.emplace("model.embed_tokens", config.vocab_size, config.hidden_size, config.initializer_range);
  }
  for (int layer = layers_.first; layer < layers_.last; ++layer) {
    blocks_.push_back(std::make_unique<Block>(config, layer, maps.of(layer), expert_rank));
  }
  if (place.is_last()) {
    norm_.emplace("model.norm", norm_options(config));
    head_.emplace("lm_head", config.hidden_size, config.vocab_size, config.initializer_range);
  }
}

Task<Stage::Output> Stage::forward(LaneContext& ctx, TokenBatch batch, Tensor x, Saved& saved) const {
  saved.blocks.resize(blocks_.size());
  x = enter(ctx, batch, x, saved);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    Task<Tensor> block = blocks_[i]->forward(ctx, x, batch.sequences, saved.blocks[i]);
    x = co_await block;
  }
  co_return leave(ctx, batch, x, saved);
}

Tensor Stage::enter(LaneContext& ctx, const TokenBatch& batch, const Tensor& x, Saved& saved) const {
  if (!embedding_) return x;
  ctx.lane.enter("embedding", -1);
  return embedding_->forward(ctx, batch.ids, saved.embedding);
}

Stage::Output Stage::leave(LaneContext& ctx, const TokenBatch& batch, const Tensor& x, Saved& saved) const {
  if (!head_) return {x};
  ctx.lane.enter("head", -1);
  const Tensor normed = norm_->forward(ctx, x, saved.norm);
  const Tensor losses = head_->forward(ctx, normed, batch.targets, saved.head);
  return {Tensor(), ctx.arena.is_dry_run() ? 0.0 : sum_of(losses)};
}

Task<Tensor> Stage::backward(LaneContext& ctx, Saved& saved, Tensor dy, Weights weights, BucketDone done) {
  const auto complete = [&](int bucket) {
    if (done) defer(ctx, "gradient reduction", [done, bucket] { done(bucket); });
    if (weights == Weights::at_once) run_deferred(ctx);
  };
  dy = begin_backward(ctx, saved, dy);
  if (head_) complete(num_buckets() - 1);
  Tensor dx;
  if (weights == Weights::at_once) dx = ctx.arena.take("gradient", ctx.dtype, {dy.dim(0), dy.dim(1)});
  for (size_t i = blocks_.size(); i-- > 0;) {
    std::optional<ArenaScope> scope;
    if (weights == Weights::at_once) {
      scope.emplace(ctx.arena);
    } else {
      dx = ctx.arena.take("gradient", ctx.dtype, {dy.dim(0), dy.dim(1)});
    }
    Task<void> block = blocks_[i]->backward(ctx, saved.blocks[i], dy, dx);
    co_await block;
    complete(static_cast<int>(i) + 1);
    std::swap(dx, dy);
  }
  if (!embedding_) co_return dy;
  ctx.lane.enter("embedding weights", -1);
  embedding_->input_grad(ctx, saved.embedding, dy);
  defer(ctx, "embedding weights", [this, &ctx, &saved] { embedding_->weight_grad(ctx, saved.embedding); });
  complete(kEmbeddingBucket);
  co_return Tensor();
}

// From the losses, or from what came from the stage after, to the gradient of the last block's output. The caller's dy
// may be overwritten.
Tensor Stage::begin_backward(LaneContext& ctx, Saved& saved, const Tensor& dy) {
  if (!head_) return dy;
  ctx.lane.enter("head gradient", -1);
  const Tensor d_normed = head_->input_grad(ctx, saved.head, ctx.token_scale);
  const Tensor dx = norm_->input_grad(ctx, saved.norm, d_normed);
  defer(ctx, "head weights", [this, &ctx, &saved] {
    head_->weight_grad(ctx, saved.head);
    norm_->weight_grad(ctx, saved.norm);
  });
  return dx;
}

Task<Tensor> Stage::decode(LaneContext& ctx, Tensor ids, Tensor x, Sequences sequences,
                           std::span<KvCache> caches) const {
  Embedding::Saved embedding;
  Norm::Saved norm;
  if (embedding_) x = embedding_->forward(ctx, ids, embedding);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    Task<Tensor> block = blocks_[i]->decode(ctx, x, sequences, caches[i]);
    x = co_await block;
  }
  if (!head_) co_return x;
  co_return head_->logits(ctx, norm_->forward(ctx, last_rows(ctx, x, sequences), norm));
}

void Stage::each_parameter(int bucket, const ParameterVisitor& visit) {
  if (bucket == kEmbeddingBucket) {
    if (embedding_) embedding_->each_parameter(visit);
  } else if (bucket < num_buckets() - 1) {
    blocks_[static_cast<size_t>(bucket) - 1]->each_parameter(visit);
  } else if (head_) {
    norm_->each_parameter(visit);
    head_->each_parameter(visit);
  }
}

void Stage::each_parameter(const ParameterVisitor& visit) {
  for (int bucket = 0; bucket < num_buckets(); ++bucket) each_parameter(bucket, visit);
}

}  // namespace cadre
