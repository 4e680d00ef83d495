// SPDX-License-Identifier: Apache-2.0
// cadre score: what a checkpoint makes of given tokens, as tensors to compare with another program.
#include "runtime/infer/score.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/config/run_file.hpp"

namespace cadre {
namespace {

struct ScoreArguments {
  std::string checkpoint;
  std::string adapter;
  std::vector<std::string> overrides;
  std::string tokens;
  std::string out;
  ScoringOptions score;
  std::string task;
  std::string replay;
  int64_t ranks = 0;
};

constexpr const char* kTokensName = "tokens";

ScoreTokens read_tokens(const std::string& path) {
  CADRE_CHECK(!path.empty(), "--tokens is missing", "expected a safetensors file with tokens, I64 [B,S]");
  const SafetensorsReader reader(path);
  const TensorEntry* entry = reader.find(kTokensName);
  CADRE_CHECK(entry != nullptr, fmt::format("{} has no tensor {}", path, kTokensName),
              "I64 [B,S], S tokens of B texts");
  CADRE_CHECK(entry->dtype == DType::i64 && entry->shape.size() == 2,
              fmt::format("{}: {} is {} [{}], allowed: I64 [B,S]", path, kTokensName, entry->dtype_name,
                          fmt::join(entry->shape, ",")),
              "S tokens of B texts");
  ScoreTokens tokens{entry->shape[0], entry->shape[1], {}};
  const std::span<const std::byte> bytes = reader.bytes(*entry);
  for (size_t i = 0; i < bytes.size(); i += sizeof(int64_t)) {
    int64_t id = 0;
    std::memcpy(&id, &bytes[i], sizeof id);
    // Beyond 32 bits lies no vocabulary; -1 is refused with the others.
    tokens.ids.push_back(id < 0 || id > INT32_MAX ? -1 : static_cast<int32_t>(id));
  }
  return tokens;
}

// How the checkpoint was trained, but one row of ranks, one micro-batch and sums in an order that does not depend on the
// ranks; then what the command line says.
RunConfig scoring_config_of(const ScoreArguments& options, const ModelFiles& files) {
  const std::filesystem::path& checkpoint = files.checkpoint;
  RunConfig config = run_config_of(files);
  config.exchange.combine = "slot_order";
  config.train = TrainConfig();
  const std::string tokenizer = config.data.tokenizer;
  config.data = {};
  config.data.path = options.tokens;
  config.data.tokenizer = tokenizer;
  config.data.sequence_length = 1;
  const ModelConfig model = config.model;
  config = parse_run_config(to_toml(config), (checkpoint / "config.json").string(), options.overrides);
  CADRE_CHECK(config.model == model, "score: a key of [model] is given", "the checkpoint defines the model");
  return config;
}

void write_results(const std::string& path, const std::vector<ResultTensor>& results) {
  std::vector<TensorSource> sources;
  for (const ResultTensor& tensor : results) {
    sources.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.memory.span()});
  }
  write_safetensors(path, sources);
}

double loss_of(const std::vector<ResultTensor>& results) { return *results.back().memory.as<double>(); }

void run_score(const ScoreArguments& options, const Job& job) {
  CADRE_CHECK(!options.out.empty(), "--out is missing", "the safetensors file to write");
  CADRE_CHECK(options.out != "-", "--out = -, allowed: a path", "a stream cannot replace the file atomically");
  const ModelFiles files = find_model(options.checkpoint, options.adapter);
  const ScoreTokens tokens = read_tokens(options.tokens);
  const std::string notes = checkpoint_notes(files.checkpoint);
  const RunConfig config = score_config(scoring_config_of(options, files), tokens);
  check(config, job.num_ranks(options.ranks));
  std::optional<RecordedRouting> replay;
  if (!options.replay.empty()) replay.emplace(options.replay, config.model, tokens.num_sequences * tokens.length);
  if (job.rank() == 0) fmt::print("{}", notes);
  job.on_ranks(options.ranks, [&](Communicator world) {
    const WorkerOptions worker_options = score_options(config, world, options.score);
    Worker worker(std::move(world), worker_options);
    load_model(files, worker.store());
    ScoringOptions scoring = options.score;
    scoring.task = task_of(options.task);
    scoring.replay = replay ? &*replay : nullptr;
    ReplayCounts replayed;
    const std::vector<ResultTensor> results = score(worker, config, tokens, scoring, &replayed);
    if (worker.world().rank() != 0) return;
    write_results(options.out, results);
    fmt::print("loss {:.6f} nats a token, over {} tokens; {} tensors in {}\n", loss_of(results),
               tokens.num_sequences * (tokens.length - 1), results.size(), options.out);
    if (replay) {
      fmt::print("{}\n", describe(replayed));
    }
  });
}

}  // namespace

Command score_command() {
  const auto options = std::make_shared<ScoreArguments>();
  return {
      .name = "score",
      .summary = "writes logits and loss of given tokens, optionally gradients, routing and hidden states",
      .arguments = {checkpoint_argument(options->checkpoint)},
      .overrides = &options->overrides,
      .options = {{"tokens", &options->tokens, any(), "a safetensors file with tokens, I64 [B,S]"},
                  {"out", &options->out, any(), "the safetensors file to write: logits F32 [B,S,V], loss F64 [1]"},
                  {"grads", &options->score.gradients, any(),
                   "also write grad.NAME of every parameter (all of them in the memory of rank 0)"},
                  {"routing", &options->score.routing, any(),
                   "also write layers.N.topk_indices I64 [B S,K] and layers.N.topk_weights F32 [B S,K], best first"},
                  {"hidden", &options->score.hidden, any(),
                   "also write layers.N.hidden F32 [B,S,H], the output of layer N"},
                  adapter_option(options->adapter),
                  {"replay", &options->replay, any(),
                   "a file that --routing wrote for the same tokens: they visit the experts that it names"},
                  task_option(options->task),
                  ranks_option(options->ranks)},
      .run = [options](const Job& job) { run_score(*options, job); }};
}

}  // namespace cadre
