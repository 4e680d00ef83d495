// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/score.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/infer/sampling.hpp"
#include "runtime/parallel/executor.hpp"
#include "runtime/parallel/gather_results.hpp"
#include "runtime/train/evaluate.hpp"
#include "runtime/train/memory_plan.hpp"

namespace cadre {
namespace {

// The tokens that this rank has of each micro-batch, and what its stages make of them.
class TokenScorer {
 public:
  TokenScorer(Worker& worker, const RunConfig& config, const ScoreTokens& tokens, const ScoringOptions& options)
      : worker_(worker), config_(config), tokens_(tokens), options_(options), labeller_(make_task_labeller(config)) {
    for (int i = 0; options.replay != nullptr && i < config.train.micro_batches; ++i) {
      const SequenceRange range = range_of(i);
      replays_.push_back(options.replay->of_tokens(range.first * tokens.length, range.count * tokens.length));
    }
  }

  std::vector<ResultPiece> run() {
    options_.gradients ? run_program() : run_forward();
    return std::move(pieces_);
  }

  // After run(). Collective over the world.
  ReplayCounts replayed() const {
    std::array<int64_t, 2> counts = {};
    for (const Replay& replay : replays_) {
      counts[0] += replay.counts.choices;
      counts[1] += replay.counts.differing;
    }
    const auto all = worker_.await(worker_.world().all_reduce(counts, ReduceOp::sum));
    return {all[0], all[1]};
  }

 private:
  SequenceRange range_of(int micro_batch) const {
    const SequenceRange global = part_of({0, tokens_.num_sequences}, micro_batch, config_.train.micro_batches);
    return part_of(global, worker_.data_rank(), worker_.grid().data);
  }

  MicroBatch read(int micro_batch) {
    const auto [first, count] = range_of(micro_batch);
    const auto begin = tokens_.ids.begin() + first * tokens_.length;
    std::vector<int32_t> ids(begin, begin + count * tokens_.length);
    std::vector<int32_t> targets(ids.size(), -1);
    for (size_t t = 0; t + 1 < ids.size(); ++t) {
      if ((static_cast<int64_t>(t) + 1) % tokens_.length != 0) targets[t] = ids[t + 1];
    }
    MicroBatch batch(std::move(ids), std::move(targets), count, tokens_.length, first);
    if (options_.task != kNoTask) batch.set_task(options_.task);
    batch.recognise_tasks(labeller_ ? &*labeller_ : nullptr);
    if (!replays_.empty()) batch.set_replay(&replays_[static_cast<size_t>(micro_batch)]);
    return batch;
  }

  StageWatch watch() {
    return [this](int micro_batch, const Stage& stage, const Stage::Saved& saved, const Tensor& y) {
      keep(range_of(micro_batch), stage, saved, y);
    };
  }

  // Forward and backward, as a step of training.
  void run_program() {
    StepWork work;
    work.step = 1;
    work.seed = static_cast<uint64_t>(config_.seed);
    work.token_scale = 1.0 / static_cast<double>(tokens_.num_sequences * (tokens_.length - 1));
    work.read = [this](int i) { return read(i); };
    work.num_tokens = [this](int i) { return range_of(i).count * tokens_.length; };
    work.forward_done = watch();
    LocalStep local = empty_local_step(worker_.model().config());
    worker_.forget_grads();
    Executor(worker_, program_of(config_)).run(work, local, config_.parallel.overlap ? Overlap::on : Overlap::off);
    worker_.gradients().finish();
    for (const Parameter* parameter : worker_.store().parameters()) {
      if (!parameter->grad.defined() || !worker_.is_first_holder(*parameter)) continue;
      for (const ParameterPart& part : parameter->parts) {
        const Tensor rows = parameter->grad.rows(part.first_row, part.num_rows);
        std::vector<int64_t> shape;
        for (int axis = 0; axis < rows.num_dims(); ++axis) shape.push_back(rows.dim(axis));
        pieces_.push_back({"grad." + part.name, DType::f32, std::move(shape), 0, copy_of(rows)});
      }
    }
  }

  void run_forward() {
    LocalStep local = empty_local_step(worker_.model().config());
    for (int i = 0; i < config_.train.micro_batches; ++i) {
      MicroBatch micro_batch = read(i);
      ArenaScope scope(worker_.arena());
      LaneContext ctx = worker_.inference_context();
      ctx.tokens = micro_batch.facts(static_cast<uint64_t>(config_.seed));
      Task<void> pass = forward_here(worker_, ctx, micro_batch, i, local, watch());
      worker_.run(pass);
    }
  }

  void keep(const SequenceRange& range, const Stage& stage, const Stage::Saved& saved, const Tensor& y) {
    const int64_t first_token = range.first * tokens_.length;
    if (stage.place().is_last()) keep_sequences("logits", range, saved.head.logits);
    for (int layer = stage.layers().first; layer < stage.layers().last; ++layer) {
      if (options_.hidden)
        keep_sequences(fmt::format("layers.{}.hidden", layer), range, output_of(stage, saved, layer, y));
      if (!options_.routing || !is_moe_layer(worker_.model().config(), layer)) continue;
      const Router::Saved& router = stage.saved_of(saved, layer)->moe.router;
      pieces_.push_back(routing_piece(layer, router.ids, first_token, tokens_.num_sequences * tokens_.length));
      pieces_.push_back({fmt::format("layers.{}.topk_weights", layer), DType::f32, pieces_.back().shape, first_token,
                         copy_of(router.weights)});
    }
  }

  // rows [T of this rank, width]
  void keep_sequences(std::string name, const SequenceRange& range, const Tensor& rows) {
    pieces_.push_back({std::move(name),
                       DType::f32,
                       {tokens_.num_sequences, tokens_.length, rows.dim(1)},
                       range.first,
                       copy_of(rows)});
  }

  // What a layer gives is what the one behind it, or the final norm, begins with.
  static Tensor output_of(const Stage& stage, const Stage::Saved& saved, int layer, const Tensor& y) {
    if (layer + 1 < stage.layers().last) return stage.saved_of(saved, layer + 1)->attention_norm.x;
    return stage.place().is_last() ? saved.norm.x : y;
  }

  Buffer copy_of(const Tensor& tensor) const {
    Buffer copy(tensor.bytes());
    worker_.kernels().memory().read(copy.data(), tensor.raw(), copy.bytes());
    return copy;
  }

  Worker& worker_;
  const RunConfig& config_;
  const ScoreTokens& tokens_;
  ScoringOptions options_;
  std::optional<TaskLabeller> labeller_;
  std::vector<Replay> replays_;  // of each micro-batch, where routing is replayed
  std::vector<ResultPiece> pieces_;
};

// Of the tokens that have a next one, in fp64 and in their order: on any number of ranks the same bits from the same logits.
double mean_loss(const ResultTensor& logits, const ScoreTokens& tokens) {
  const auto vocabulary = static_cast<size_t>(logits.shape[2]);
  double sum = 0.0;
  for (int64_t t = 0; t < tokens.num_sequences * tokens.length; ++t) {
    if ((t + 1) % tokens.length == 0) continue;
    const float* row = logits.memory.as<float>() + static_cast<size_t>(t) * vocabulary;
    sum -= log_probability({row, vocabulary}, tokens.ids[static_cast<size_t>(t) + 1]);
  }
  return sum / static_cast<double>(tokens.num_sequences * (tokens.length - 1));
}

// The loss is that of the tokens alone, and nothing is left to chance.
void drop_other_losses(ModelConfig& model) {
  LossOptions& losses = model.router.losses;
  for (double* weight :
       {&model.aux_loss_alpha, &losses.kl, &losses.importance, &losses.load, &losses.expert, &losses.device,
        &losses.communication, &losses.expert_variance, &losses.device_variance, &losses.diversity, &losses.z}) {
    *weight = 0.0;
  }
  model.router.scorer.noise = false;
  model.router.scorer.jitter = 0.0;
}

}  // namespace

RunConfig score_config(RunConfig config, const ScoreTokens& tokens) {
  const int64_t vocabulary = config.model.vocab_size;
  CADRE_CHECK(tokens.num_sequences >= 1 && tokens.length >= 2 && tokens.length <= config.model.max_position_embeddings,
              fmt::format("tokens have shape [{},{}], allowed: [B >= 1, 2 <= S <= max_position_embeddings = {}]",
                          tokens.num_sequences, tokens.length, config.model.max_position_embeddings),
              "S tokens of each of B sequences");
  for (size_t t = 0; t < tokens.ids.size(); ++t) {
    CADRE_CHECK(tokens.ids[t] >= 0 && tokens.ids[t] < vocabulary,
                fmt::format("token {} of sequence {} is {}, allowed: [0, vocab_size = {})",
                            t % static_cast<size_t>(tokens.length), t / static_cast<size_t>(tokens.length),
                            tokens.ids[t], vocabulary),
                "the tokens of another model?");
  }
  drop_other_losses(config.model);
  config.model.num_nextn_predict_layers = 0;
  config.train.batch = tokens.num_sequences;
  config.data.sequence_length = tokens.length;
  return config;
}

WorkerOptions score_options(const RunConfig& score_config, const Communicator& world, const ScoringOptions& options) {
  WorkerOptions worker = training_options(score_config, world);
  worker.with_grad = options.gradients;
  worker.parallel.shard_gradients = false;
  worker.parallel.shard_optimizer = false;  // each rank has all sums
  worker.recompute = {};                    // what it looks at is kept
  worker.activation_bytes += worker.work_bytes;
  worker.num_works = 0;
  worker.row_bits = RowBits::as_in_training;
  if (!options.gradients) worker.num_lanes = 1;
  return worker;
}

std::vector<ResultTensor> score(Worker& worker, const RunConfig& config, const ScoreTokens& tokens,
                                const ScoringOptions& options, ReplayCounts* replayed) {
  TokenScorer scorer(worker, config, tokens, options);
  std::vector<ResultTensor> results = gather_results(worker, scorer.run());
  if (replayed != nullptr) *replayed = scorer.replayed();
  if (worker.world().rank() != 0) return results;
  const auto logits = std::ranges::find(results, "logits", &ResultTensor::name);
  CADRE_ASSERT(logits != results.end());
  ResultTensor loss{"loss", DType::f64, {1}, Buffer(sizeof(double))};
  *loss.memory.as<double>() = mean_loss(*logits, tokens);
  results.push_back(std::move(loss));
  return results;
}

}  // namespace cadre
