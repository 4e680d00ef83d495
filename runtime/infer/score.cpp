// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/score.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/parallel/executor.hpp"
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
      counts[0] += replay.choices;
      counts[1] += replay.differing;
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
      const std::vector<int64_t> shape = {tokens_.num_sequences * tokens_.length, router.ids.dim(1)};
      pieces_.push_back(
          {fmt::format("layers.{}.topk_indices", layer), DType::i64, shape, first_token, widened(router.ids)});
      pieces_.push_back(
          {fmt::format("layers.{}.topk_weights", layer), DType::f32, shape, first_token, copy_of(router.weights)});
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

  static Buffer widened(const Tensor& ids) {
    Buffer wide(static_cast<size_t>(ids.numel()) * sizeof(int64_t));
    for (int64_t i = 0; i < ids.numel(); ++i) wide.as<int64_t>()[i] = ids.data<int32_t>()[i];
    return wide;
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
    const double largest = *std::max_element(row, row + vocabulary);
    double denominator = 0.0;
    for (size_t i = 0; i < vocabulary; ++i) denominator += std::exp(static_cast<double>(row[i]) - largest);
    sum += largest + std::log(denominator) - static_cast<double>(row[tokens.ids[static_cast<size_t>(t) + 1]]);
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
  worker.parallel.shard_optimizer = false;  // each rank has all sums
  worker.recompute = {};                    // what it looks at is kept
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

namespace {

using nlohmann::json;

constexpr int kScoreTag = 0;
constexpr size_t kMessageBytes = size_t{256} << 20;  // MPI counts are int

size_t bytes_of(DType dtype, const std::vector<int64_t>& shape) {
  size_t bytes = size_of(dtype);
  for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

// What rank 0 must know to receive the pieces, in their order.
std::string describe(const std::vector<ResultPiece>& pieces) {
  json list = json::array();
  for (const ResultPiece& piece : pieces) {
    list.push_back({piece.name, static_cast<int>(piece.dtype), piece.shape, piece.first_row, piece.memory.bytes()});
  }
  return list.dump();
}

std::vector<ResultPiece> pieces_described(std::string_view text) {
  std::vector<ResultPiece> pieces;
  for (const json& item : json::parse(text)) {
    pieces.push_back({.name = item[0],
                      .dtype = static_cast<DType>(item[1].get<int>()),
                      .shape = item[2],
                      .first_row = item[3],
                      .memory = Buffer(item[4].get<size_t>())});
  }
  return pieces;
}

void send(const Worker& worker, const Buffer& memory) {
  for (size_t first = 0; first < memory.bytes(); first += kMessageBytes) {
    const size_t count = std::min(kMessageBytes, memory.bytes() - first);
    Request sent = worker.world().send(memory.span().subspan(first, count), memory.share(), 0, kScoreTag);
    worker.await(sent);
  }
}

void receive(const Worker& worker, Buffer& memory, int peer) {
  for (size_t first = 0; first < memory.bytes(); first += kMessageBytes) {
    const size_t count = std::min(kMessageBytes, memory.bytes() - first);
    Request arrived = worker.world().receive(memory.span().subspan(first, count), memory.share(), peer, kScoreTag);
    worker.await(arrived);
  }
}

Buffer copy_of(const std::string& text) {
  Buffer copy(text.size());
  std::memcpy(copy.data(), text.data(), text.size());
  return copy;
}

class Collection {
 public:
  void add(const ResultPiece& piece) {
    const auto [found, fresh] = tensors_.try_emplace(piece.name);
    ResultTensor& tensor = found->second.tensor;
    if (fresh) tensor = {piece.name, piece.dtype, piece.shape, Buffer(bytes_of(piece.dtype, piece.shape))};
    CADRE_CHECK_PEER(tensor.dtype == piece.dtype && tensor.shape == piece.shape && piece.first_row >= 0,
                     fmt::format("ranks disagree on the type or the shape of {}", piece.name));
    const size_t row_bytes = tensor.memory.bytes() / static_cast<size_t>(std::max<int64_t>(1, piece.shape.front()));
    const size_t begin = static_cast<size_t>(piece.first_row) * row_bytes;
    CADRE_CHECK_PEER(begin + piece.memory.bytes() <= tensor.memory.bytes(),
                     fmt::format("rows of {} lie behind its end", piece.name));
    if (!piece.memory.empty()) std::memcpy(tensor.memory.data() + begin, piece.memory.data(), piece.memory.bytes());
    found->second.bytes_here += piece.memory.bytes();
  }

  std::vector<ResultTensor> take() {
    std::vector<ResultTensor> list;
    for (auto& [name, part] : tensors_) {
      CADRE_CHECK_PEER(part.bytes_here == part.tensor.memory.bytes(),
                       fmt::format("{} of the {} bytes of {} came", part.bytes_here, part.tensor.memory.bytes(), name));
      list.push_back(std::move(part.tensor));
    }
    return list;
  }

 private:
  struct Part {
    ResultTensor tensor;
    size_t bytes_here = 0;
  };
  std::map<std::string, Part> tensors_;
};

}  // namespace

std::vector<ResultTensor> gather_results(const Worker& worker, std::vector<ResultPiece> mine) {
  const Communicator& world = worker.world();
  const std::string text = describe(mine);
  const std::vector<int64_t> sizes = worker.await(world.all_gather(static_cast<int64_t>(text.size())));
  if (world.rank() > 0) {
    send(worker, copy_of(text));
    for (const ResultPiece& piece : mine) send(worker, piece.memory);
    return {};
  }
  Collection all;
  for (const ResultPiece& piece : mine) all.add(piece);
  mine.clear();
  for (int rank = 1; rank < world.size(); ++rank) {
    Buffer theirs(static_cast<size_t>(sizes[static_cast<size_t>(rank)]));
    receive(worker, theirs, rank);
    for (ResultPiece& piece : pieces_described({theirs.as<char>(), theirs.bytes()})) {
      receive(worker, piece.memory, rank);
      all.add(piece);
      piece.memory = Buffer();
    }
  }
  return all.take();
}

}  // namespace cadre
