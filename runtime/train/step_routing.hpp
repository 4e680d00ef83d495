// SPDX-License-Identifier: Apache-2.0
// Routing of training steps in files, one a step: train.replay has tokens visit the experts that a file names, log.routing
// writes the experts that they visited.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "layers/model/config.hpp"
#include "layers/router/token_facts.hpp"
#include "runtime/parallel/gather_results.hpp"
#include "runtime/parallel/step.hpp"

namespace cadre {

// Routing in files: what `cadre score --routing` and log.routing write, read to be replayed.

class RecordedRouting {
 public:
  // Reads layers.<N>.topk_indices I64 [T,K] of every mixture layer of `model`, MTP modules left out, for `num_tokens` tokens.
  // Empty: as many as are there. Throws on what is missing, of another shape, or no expert, and where a token visits one expert twice.
  RecordedRouting(const std::filesystem::path& path, const ModelConfig& model, std::optional<int64_t> num_tokens);

  int64_t num_tokens() const { return num_tokens_; }
  // Of tokens [first, first + count).
  Replay of_tokens(int64_t first, int64_t count) const;
  // One more token; empty: one that is not recorded.
  void append(Replay& replay, std::optional<int64_t> token) const;

 private:
  int64_t num_tokens_;
  std::map<int, std::vector<int32_t>> ids_;  // [T,K] by layer
};

// layers.<N>.topk_indices of tokens from `first_token` on; ids i32[T,K] in host memory.
ResultPiece routing_piece(int layer, const Tensor& ids, int64_t first_token, int64_t num_tokens);

// "replayed 96 choices of experts; without, 1.042 % would be others"
std::string describe(const ReplayCounts& counts);

class StepRouting {
 public:
  // All arguments outlive this object.
  StepRouting(const RunConfig& config, Worker& worker) : config_(config), worker_(worker) {}

  // Throws unless there is a file to replay for each of the steps first .. last.
  void check_files(int64_t first, int64_t last) const;

  // The passes of a step begin, once more where it is repeated. Reads what is replayed; throws as RecordedRouting.
  void begin(int64_t step);
  // For the micro-batch of that number; nullptr where nothing is replayed.
  Replay* replay_of(int micro_batch) {
    return replays_.empty() ? nullptr : &replays_[static_cast<size_t>(micro_batch)];
  }
  // Sees the forward passes of a step that is recorded; empty where none is.
  StageWatch watch();
  // The step is over. Collective over the world where steps are recorded: rank 0 writes the file.
  void end();

  // Of all steps so far, over all ranks; a line, or "" where nothing is replayed. Collective over the world.
  std::string report() const;

 private:
  SequenceRange range_of(int micro_batch) const;

  const RunConfig& config_;
  Worker& worker_;
  int64_t step_ = 0;
  std::vector<Replay> replays_;  // of the step's micro-batches
  ReplayCounts counts_;
  std::vector<ResultPiece> pieces_;
};

}  // namespace cadre
