// SPDX-License-Identifier: Apache-2.0
// The model as generation uses it: texts in slots, each with its part of the caches, go on by any number of tokens at
// once, and the MTP modules draft what comes after. Where a text is and what is made of it is not known here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "layers/moe/expert_cache.hpp"
#include "runtime/parallel/worker.hpp"
#include "runtime/train/step_routing.hpp"

namespace cadre {

// Tokens of one slot, from position `first` on; what the slot knew of that position and later ones is forgotten.
struct Reading {
  int64_t first = 0;
  std::vector<int32_t> tokens;  // none: the slot rests
  int64_t num_logits = 0;       // of how many of them, the last ones, logits are wanted
  std::vector<int32_t> tasks;   // of each of them; none: no token has a task
  int64_t num_experts = 0;      // that each token visits at most; 0: as many as the model says
  int64_t first_recorded = 0;   // of the recorded routing, the token at position 0; see Decoder
  int64_t num_recorded = 0;     // positions from there on that are replayed
};

class Decoder {
 public:
  // Slots of this rank, also none. `expert_cache` and `replay`, routing that readings name tokens of, may be nullptr.
  Decoder(Worker& worker, int64_t num_slots, int64_t capacity, ExpertCache* expert_cache,
          const RecordedRouting* replay = nullptr);

  // One reading a slot. The wanted logits [R,V], in the order of slots and tokens, valid until the next read. Collective
  // over the expert-parallel group.
  Tensor read(const std::vector<Reading>& readings);

  // One draft for each module, from the rows of the last reading: `texts[slot]` has all tokens that are known now, of which
  // all but the last have been read, and in the last reading at least one; empty where nothing is to be drafted.
  // `choose(slot, logits, position)` picks the token of that position. Collective as read.
  using Choose = std::function<int32_t(size_t slot, std::span<const float> logits, int64_t position)>;
  std::vector<std::vector<int32_t>> draft(const std::vector<std::span<const int32_t>>& texts, const Choose& choose);

  // So far, on this rank; also those that were read once more, with drafts before them.
  const RoutedTokens& routed() const { return routed_; }
  // Its slots, which start anew.
  std::map<int, std::vector<int64_t>> take_slots() { return std::exchange(routed_.slots, {}); }
  const ReplayCounts& replayed() const { return replayed_; }
  int num_drafts() const { return worker_.model().last_stage().num_mtp(); }

 private:
  struct Slot {
    int64_t first = 0;           // of the last reading
    Tensor hidden;               // [count,H]: its rows behind the final norm, valid until the next
    std::vector<int32_t> tasks;  // of all its tokens so far, or none
    int64_t num_experts = 0;
    int64_t first_recorded = 0;
    int64_t num_recorded = 0;
    std::vector<float> tail;  // rows before `first`: later modules stand on some of them once more
  };

  LaneContext context(const NextTokens& tokens);
  // Of these tokens.
  Replay replay_of(const NextTokens& tokens) const;
  Task<void> read_into(Tensor& logits, LaneContext& ctx, const std::vector<Reading>& readings, NextTokens tokens);
  Task<void> draft_into(std::vector<std::vector<int32_t>>& drafts, LaneContext& ctx, NextTokens tokens,
                        const std::vector<std::span<const int32_t>>& texts, const Choose& choose);
  Tensor rows_of(const NextTokens& tokens);
  Tensor take(int64_t num_rows) const;

  Worker& worker_;
  ExpertCache* expert_cache_;
  const RecordedRouting* recorded_;
  Arena cache_arena_{Arena::Mode::real, /*poison=*/false, worker_.kernels().memory()};
  std::vector<KvCache> caches_;
  std::vector<Slot> slots_;
  RoutedTokens routed_;
  Replay replay_;  // of the last reading
  ReplayCounts replayed_;
  Arena::Mark mark_;  // of the activations, before a reading
};

}  // namespace cadre
