// SPDX-License-Identifier: Apache-2.0
#include "layers/model/stage.hpp"

#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr int kEmbeddingBucket = 0;
constexpr const char* kEmbeddingName = "model.embed_tokens";
constexpr const char* kHeadCopyName = "shared_head.head.weight";

int mtp_layer(const ModelConfig& config, int module) { return static_cast<int>(config.num_hidden_layers) + module; }

// Files hold the parameter once more beside each MTP module.
void add_copies(const ModelConfig& config, const char* name, Parameter& parameter) {
  for (int i = 0; i < config.num_nextn_predict_layers; ++i) {
    parameter.copies.push_back(layer_name(mtp_layer(config, i), name));
  }
}

}  // namespace

bool embeds_at_end(const ModelConfig& config) {
  return config.num_nextn_predict_layers > 0 || config.tie_word_embeddings;
}

Stage::Stage(const ModelConfig& config, const StagePlace& place, const ExpertMaps& maps, int expert_rank)
    : config_(config), place_(place), layers_(layers_of(config, place)) {
  if (place.is_first()) make_embedding();
  for (int layer = layers_.first; layer < layers_.last; ++layer) {
    blocks_.push_back(std::make_unique<Block>(config, layer, maps.of(layer), expert_rank));
  }
  if (place.is_last()) make_end(maps, expert_rank);
}

void Stage::make_embedding() {
  embedding_.emplace(kEmbeddingName, config_.vocab_size, config_.hidden_size, config_.initializer_range);
  add_copies(config_, "embed_tokens.weight", embedding_->table());
  if (config_.tie_word_embeddings) add_copies(config_, kHeadCopyName, embedding_->table());
}

void Stage::make_end(const ExpertMaps& maps, int expert_rank) {
  norm_.emplace("model.norm", norm_options(config_));
  if (!embedding_ && embeds_at_end(config_)) {
    embedding_copy_.emplace(kEmbeddingName, config_.vocab_size, config_.hidden_size, config_.initializer_range);
    embedding_copy_->table().is_copy = true;
  }
  if (config_.tie_word_embeddings) {
    head_.emplace(embedding_at_end().table());
  } else {
    head_.emplace("lm_head", config_.hidden_size, config_.vocab_size, config_.initializer_range);
    add_copies(config_, kHeadCopyName, head_->weight());
  }
  for (int i = 0; i < config_.num_nextn_predict_layers; ++i) {
    const int layer = mtp_layer(config_, i);
    mtp_.push_back(std::make_unique<MtpModule>(config_, layer, maps.of(layer), expert_rank));
  }
}

bool Stage::has(int layer) const {
  if (layer >= config_.num_hidden_layers) {
    return place_.is_last() && layer < config_.num_hidden_layers + config_.num_nextn_predict_layers;
  }
  return layers_.first <= layer && layer < layers_.last;
}

Block& Stage::block(int layer) {
  if (layer >= config_.num_hidden_layers) return mtp_[static_cast<size_t>(layer - config_.num_hidden_layers)]->block();
  return *blocks_[static_cast<size_t>(layer - layers_.first)];
}

const Block::Saved* Stage::saved_of(const Saved& saved, int layer) const {
  if (!has(layer)) return nullptr;
  if (layer < config_.num_hidden_layers) return &saved.blocks[static_cast<size_t>(layer - layers_.first)];
  return saved.mtp.empty() ? nullptr : &saved.mtp[static_cast<size_t>(layer - config_.num_hidden_layers)].block;
}

const Tensor* Stage::recomputed_from(const Saved& saved, int layer) const {
  if (!has(layer) || layer >= config_.num_hidden_layers) return nullptr;
  const Tensor& input = saved.inputs[static_cast<size_t>(layer - layers_.first)];
  return input.defined() ? &input : nullptr;
}

Task<Stage::Output> Stage::forward(LaneContext& ctx, TokenBatch batch, Tensor x, Saved& saved) const {
  saved.blocks.resize(blocks_.size());
  saved.inputs.resize(blocks_.size());
  saved.sequences = batch.sequences;
  Task<void> embedding = wait_for_values(ctx, kEmbeddingBucket);
  co_await embedding;
  x = enter(ctx, batch, x, saved);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    Task<void> values = wait_for_values(ctx, static_cast<int>(i) + 1);
    co_await values;
    Task<Tensor> block = forward_block(ctx, i, x, saved);
    x = co_await block;
  }
  Task<void> values = wait_for_values(ctx, num_buckets() - 1);
  co_await values;
  Task<Output> end = leave(ctx, batch, x, saved);
  const Output output = co_await end;
  co_return output;
}

Task<void> Stage::wait_for_values(LaneContext& ctx, int bucket) const {
  if (!ctx.values_of) co_return;
  Request& values = ctx.values_of(bucket);
  if (values.test()) co_return;
  ctx.lane.enter("parameter gather", is_block(bucket) ? layers_.first + bucket - 1 : -1);
  co_await values;
}

// Of a block that is computed once more, only the input and the output stay.
Task<Tensor> Stage::forward_block(LaneContext& ctx, size_t block, Tensor x, Saved& saved) const {
  const int layer = layers_.first + static_cast<int>(block);
  if (!ctx.recompute.whole_layer(layer)) {
    Task<Tensor> pass = blocks_[block]->forward(ctx, x, saved.sequences, saved.blocks[block]);
    const Tensor y = co_await pass;
    co_return y;
  }
  saved.inputs[block] = x;
  const Tensor kept = ctx.arena.take("layer output", ctx.dtype, {x.dim(0), x.dim(1)});
  const WorkScope scope(ctx.arena);
  Task<Tensor> pass = blocks_[block]->forward(ctx, x, saved.sequences, saved.blocks[block]);
  const Tensor y = co_await pass;
  if (!ctx.arena.is_dry_run()) ctx.kernels.copy(y, kept);
  co_return kept;
}

Tensor Stage::enter(LaneContext& ctx, const TokenBatch& batch, const Tensor& x, Saved& saved) const {
  if (!embedding_) return x;
  ctx.lane.enter("embedding", -1);
  return embedding_->forward(ctx, batch.ids, saved.embedding);
}

Task<Stage::Output> Stage::leave(LaneContext& ctx, TokenBatch batch, Tensor x, Saved& saved) const {
  if (!head_) co_return Output{x};
  ctx.lane.enter("head", -1);
  const Tensor normed = norm_->forward(ctx, x, saved.norm);
  const Tensor losses = head_->forward(ctx, normed, batch.targets, saved.head, batch.weights);
  Request computed = ctx.kernels.launched();
  co_await computed;
  Output output{.y = Tensor(), .loss_sum = ctx.arena.is_dry_run() ? 0.0 : sum_of_losses(losses, batch.weights)};
  saved.mtp.resize(ctx.training ? mtp_.size() : 0);
  if (!saved.mtp.empty()) {
    Task<double> mtp = predict_mtp(ctx, batch, normed, saved);
    output.mtp_loss_sum = co_await mtp;
  }
  co_return output;
}

// The mean of the modules' losses.
Task<double> Stage::predict_mtp(LaneContext& ctx, TokenBatch batch, Tensor normed, Saved& saved) const {
  double sum = 0.0;
  Tensor h = normed;
  LaneContext* of_rows = &ctx;
  for (size_t i = 0; i < mtp_.size(); ++i) {
    Task<MtpModule::Output> module = mtp_[i]->forward(*of_rows, batch, h, embedding_at_end(), *head_, saved.mtp[i]);
    const MtpModule::Output output = co_await module;
    sum += output.loss_sum;
    h = output.y;
    batch = saved.mtp[i].batch;
    of_rows = &*saved.mtp[i].ctx;
  }
  co_return sum / static_cast<double>(mtp_.size());
}

Task<Tensor> Stage::backward(LaneContext& ctx, Saved& saved, Tensor dy, Weights weights, BucketCalls calls) {
  const auto begin = [&](int bucket) {
    if (calls.begin) defer(ctx, "gradient reduction", [call = calls.begin, bucket] { call(bucket); });
  };
  const auto complete = [&](int bucket) {
    if (calls.done) defer(ctx, "gradient reduction", [call = calls.done, bucket] { call(bucket); });
    if (ctx.deferred != nullptr) ctx.deferred->end_part();
    if (weights == Weights::at_once) run_deferred(ctx);
  };
  // Head and MTP modules add to the gradient of the embedding: with its part, so that micro-batches add in order.
  const bool holds = embeds_at_both_ends() && weights == Weights::later && ctx.deferred != nullptr;
  if (head_) {
    if (holds) ctx.deferred->hold();
    begin(num_buckets() - 1);
    if (embeds_at_both_ends()) begin(kEmbeddingBucket);
    Task<Tensor> of_head = begin_backward(ctx, saved, weights);
    dy = co_await of_head;
    complete(num_buckets() - 1);
    if (holds) ctx.deferred->stop_holding();
  }
  Tensor dx;
  if (weights == Weights::at_once) dx = ctx.arena.take("gradient", ctx.dtype, {dy.dim(0), dy.dim(1)});
  for (size_t i = blocks_.size(); i-- > 0;) {
    std::optional<ArenaScope> scope;
    if (weights == Weights::at_once) {
      scope.emplace(ctx.arena);
    } else {
      dx = ctx.arena.take("gradient", ctx.dtype, {dy.dim(0), dy.dim(1)});
    }
    if (saved.inputs[i].defined()) {
      saved.blocks[i] = {};
      Task<Tensor> again = blocks_[i]->forward(ctx, saved.inputs[i], saved.sequences, saved.blocks[i]);
      co_await again;
    }
    begin(static_cast<int>(i) + 1);
    Task<void> block = blocks_[i]->backward(ctx, saved.blocks[i], dy, dx);
    co_await block;
    complete(static_cast<int>(i) + 1);
    std::swap(dx, dy);
  }
  if (holds) ctx.deferred->release();
  if (!embedding_) co_return dy;
  ctx.lane.enter("embedding weights", -1);
  embedding_->input_grad(ctx, saved.embedding, dy);
  if (!embeds_at_both_ends()) begin(kEmbeddingBucket);
  defer(ctx, "embedding weights", [this, &ctx, &saved] { embedding_->weight_grad(ctx, saved.embedding); });
  complete(kEmbeddingBucket);
  co_return Tensor();
}

// From the losses to the gradient of the last block's output.
Task<Tensor> Stage::begin_backward(LaneContext& ctx, Saved& saved, Weights weights) {
  ctx.lane.enter("head gradient", -1);
  const Tensor d_normed = head_->input_grad(ctx, saved.head, ctx.loss_scale.value_or(ctx.token_scale));
  if (!saved.mtp.empty()) {
    Task<void> mtp = mtp_backward(ctx, saved, d_normed, weights);
    co_await mtp;
    ctx.lane.enter("head gradient", -1);
  }
  const Tensor dx = norm_->input_grad(ctx, saved.norm, d_normed);
  defer(ctx, "head weights", [this, &ctx, &saved] {
    head_->weight_grad(ctx, saved.head);
    norm_->weight_grad(ctx, saved.norm);
  });
  co_return dx;
}

// Adds what the MTP modules give to the gradient of the normed rows.
Task<void> Stage::mtp_backward(LaneContext& ctx, Saved& saved, Tensor d_normed, Weights weights) {
  const double scale =
      ctx.loss_scale.value_or(ctx.token_scale) * config_.mtp_loss_factor / static_cast<double>(mtp_.size());
  std::optional<ArenaScope> scope;
  if (weights == Weights::at_once) scope.emplace(ctx.arena);
  Tensor dy;
  for (size_t i = mtp_.size(); i-- > 0;) {
    Tensor dh = d_normed;
    if (i > 0) {
      dh = ctx.arena.take("mtp", ctx.dtype, {saved.mtp[i].num_rows, config_.hidden_size});
      if (!ctx.arena.is_dry_run()) ctx.kernels.memory().fill(dh.raw(), std::byte{0}, dh.bytes());
    }
    Task<void> module = mtp_[i]->backward(ctx, saved.mtp[i], scale, dy, embedding_at_end(), *head_, dh);
    co_await module;
    dy = dh;
  }
  if (weights == Weights::at_once) run_deferred(ctx);
}

Task<Tensor> Stage::decode(LaneContext& ctx, Tensor ids, Tensor x, NextTokens tokens, std::span<KvCache> caches) const {
  Embedding::Saved embedding;
  Norm::Saved norm;
  if (embedding_) x = embedding_->forward(ctx, ids, embedding);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    Task<Tensor> block = blocks_[i]->decode(ctx, x, tokens, caches[i]);
    x = co_await block;
  }
  if (!head_) co_return x;
  ctx.lane.enter("head", -1);
  co_return norm_->forward(ctx, x, norm);
}

Task<Tensor> Stage::decode_mtp(LaneContext& ctx, int module, Tensor ids, Tensor h, NextTokens tokens,
                               KvCache& cache) const {
  Task<Tensor> task = mtp(module).decode(ctx, ids, h, tokens, cache, embedding_at_end());
  const Tensor y = co_await task;
  co_return y;
}

Tensor Stage::mtp_logits(Context& ctx, int module, const Tensor& y) const { return mtp(module).logits(ctx, y, *head_); }

void Stage::each_parameter(int bucket, const ParameterVisitor& visit) {
  if (bucket == kEmbeddingBucket) {
    if (embedding_) embedding_->each_parameter(visit);
  } else if (bucket < num_buckets() - 1) {
    blocks_[static_cast<size_t>(bucket) - 1]->each_parameter(visit);
  } else if (head_) {
    if (embedding_copy_) embedding_copy_->each_parameter(visit);
    for (const auto& module : mtp_) module->each_parameter(visit);
    norm_->each_parameter(visit);
    head_->each_parameter(visit);
  }
}

void Stage::each_parameter(const ParameterVisitor& visit) {
  for (int bucket = 0; bucket < num_buckets(); ++bucket) each_parameter(bucket, visit);
}

}  // namespace cadre
