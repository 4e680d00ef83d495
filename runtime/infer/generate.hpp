// SPDX-License-Identifier: Apache-2.0
// Lets a model go on with a text, token by token, with the keys and values of what it has read in a cache.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "layers/moe/expert_cache.hpp"
#include "runtime/infer/sample.hpp"
#include "runtime/train/worker.hpp"

namespace cadre {

// What the router is told of a text.
struct RequestFacts {
  int32_t task = -1;        // the number of its task; -1: none
  int64_t num_experts = 0;  // that each token visits at most; 0: as many as the model says
};

struct GenerateOptions {
  int64_t max_new = 200;
  Sampling sampling;
  ExpertCache* cache = nullptr;  // of this rank; nullptr: every output of an expert is computed
  RequestFacts facts;
};

// Makes up to `max_new` tokens, fewer when the model chooses its eos_token_id, which is not emitted. Collective over
// the expert-parallel group: its first rank holds the text and calls `emit` with each token as it is made; the others
// lend their experts, bring no token of their own and never call it. `prompt` and options are the same on all ranks, but
// for the cache, which each rank may have or not.
void generate(Worker& worker, std::span<const int32_t> prompt, const GenerateOptions& options,
              const std::function<void(int32_t)>& emit);

}  // namespace cadre
