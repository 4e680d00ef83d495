// SPDX-License-Identifier: Apache-2.0
// Lets a model go on with texts, several at once, spread over the ranks that share its experts, with what it has read of them
// in caches. Where it has MTP modules they draft what comes next, and the model reads drafts together with the
// token before them: those that it would have chosen itself stand, so that a text is the same, and made in fewer passes
// (speculative decoding: Leviathan et al. 2023; with such modules DeepSeek-V3, arXiv 2412.19437, section 5.4.3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "layers/moe/expert_cache.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/infer/decoder.hpp"
#include "runtime/infer/pass_rebalancer.hpp"
#include "runtime/infer/sampling.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/tokenizer/utf8.hpp"

namespace cadre {

// Facts of a text that the router uses.
struct RequestFacts {
  int32_t task = kNoTask;   // of all its tokens; kNoTask: what GenerateOptions::labeller says
  int64_t num_experts = 0;  // that each token visits at most; 0: as many as the model says
};

struct TextRequest {
  std::vector<int32_t> prompt;  // at least one token
  Sampling sampling;
  RequestFacts facts = {};
};

struct GenerateOptions {
  int64_t max_new = 200;                                // tokens of a text
  int64_t batch = 16;                                   // texts under way at once, over all ranks
  bool speculate = true;                                // where the model has MTP modules
  std::optional<std::vector<int32_t>> end_tokens = {};  // in the place of the model's eos_token_id
  std::vector<std::string> stop_strings = {};           // a text ends with the token in which one of them ends
  std::function<std::string(int32_t)> piece = {};       // the bytes of a token, for stop_strings
  bool emits_on_all_ranks = false;                      // else on the first
  bool log_probabilities = false;                       // of emitted tokens are wanted
  ExpertCache* cache = nullptr;                         // of this rank; nullptr: every output of an expert is computed
  PassRebalancer* rebalancer = nullptr;                 // moves experts between passes; nullptr: they stay
  // Routing of the first tokens of each text, prompt and what is made: equally many of each text, one text after the other. What
  // lies behind is left to the routers, as are MTP modules.
  const RecordedRouting* replay = nullptr;
  const TaskLabeller* labeller = nullptr;  // of tokens as they are read, drafts too; nullptr: no tasks
};

// Over all texts, the same on all ranks. The first drafted token after a known one is draft 0.
struct GenerateStatistics {
  std::vector<int64_t> drafted;  // by draft, those that were compared with the model's choice
  std::vector<int64_t> accepted;
  ReplayCounts replayed;
  // [texts][emitted tokens]: log softmax of the logits, without temperature and all else that sampling does; where wanted.
  std::vector<std::vector<double>> log_probabilities;
  RoutedTokens routed;  // of all that the model has read, drafts too
};

// Called with each token of a text as it is made, and with none when the text is over.
using Emit = std::function<void(size_t text, std::optional<int32_t> token)>;

// Makes up to `max_new` tokens of each text, fewer when the model chooses one of its end_tokens, which is not emitted. A text does
// not depend on the others, nor on `batch` and `speculate`. Collective over the expert-parallel group, whose first rank calls
// `emit`, also with the token that completes a stop string. All arguments are the same on all ranks, but for the cache, which each rank may have or not.
GenerateStatistics generate(Worker& worker, const std::vector<TextRequest>& texts, const GenerateOptions& options,
                            const Emit& emit);

// Texts that are made at the same time, as a reader wants them: one after the other, each as it comes, in whole characters.

// The first text that is not over goes to `sink` as it is made; later ones wait for their turn. An end of line stands behind
// each.
class TextStream {
 public:
  TextStream(size_t num_texts, std::function<void(std::string_view)> sink);

  void add(size_t text, std::string_view bytes);
  void end(size_t text);

 private:
  struct Text {
    Utf8Stream characters;
    std::string waiting;
    bool is_over = false;
  };

  void write();

  std::function<void(std::string_view)> sink_;
  std::vector<Text> texts_;
  size_t current_ = 0;
};

}  // namespace cadre
