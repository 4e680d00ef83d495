// SPDX-License-Identifier: Apache-2.0
// What a model makes of given tokens: logits and loss, and on request the gradient of the loss for every parameter, the
// choice of the routers and the hidden states, all under names, to be compared with another program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/config/parsed_keys.hpp"
#include "runtime/parallel/gather_results.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/train/step_routing.hpp"

namespace cadre {

// ids[sequence * length + position], each in [0, vocab_size).
struct ScoreTokens {
  int64_t num_sequences = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;
};

struct ScoringOptions {
  bool gradients = false;
  bool routing = false;
  bool hidden = false;
  int32_t task = kNoTask;                   // of all tokens; kNoTask: what the run recognises, if it does
  const RecordedRouting* replay = nullptr;  // of the same tokens, instead of what routers choose
};

// The configuration of a run that scores: `tokens` are its one batch, and the loss has no other part than theirs.
RunConfig score_config(RunConfig config, const ScoreTokens& tokens);
WorkerOptions score_options(const RunConfig& score_config, const Communicator& world, const ScoringOptions& options);

// B = sequences, S = length, T = B S:
//   logits F32 [B,S,V]; loss F64 [1], the mean over T - B tokens of -log p(next token);
//   gradients: grad.<parameter>; routing: layers.<N>.topk_indices I64 [T,K], layers.<N>.topk_weights F32 [T,K];
//   hidden: layers.<N>.hidden F32 [B,S,H], what layer N gives.
// Collective over the world of a worker that was made with these options; `config` is that of score_config, and its
// micro-batches, schedule and exchange are used as in training. The tensors come on rank 0, nothing on the others; `replayed`
// on all.
std::vector<ResultTensor> score(Worker& worker, const RunConfig& config, const ScoreTokens& tokens,
                                const ScoringOptions& options, ReplayCounts* replayed = nullptr);

}  // namespace cadre
