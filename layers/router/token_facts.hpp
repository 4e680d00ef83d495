// SPDX-License-Identifier: Apache-2.0
// What a router may ask about the tokens of a micro-batch besides their rows.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "layers/nn/linear.hpp"
#include "layers/tensor/arena.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

// Routing that was recorded, to be used again in place of what routers choose: two precisions, or two engines, then compute
// with the same experts.

inline constexpr int32_t kNotRecorded = -2;

// What was replayed, over tokens and mixture layers.
struct ReplayCounts {
  int64_t choices = 0;
  int64_t differing = 0;  // of them, those that the routers would not have made
};

// Of the tokens of a micro-batch.
struct Replay {
  // Of mixture layers [T,K]: experts of a token, best first; -1: none. A token with kNotRecorded, and a layer that is not here,
  // is left to the router.
  std::map<int, std::vector<int32_t>> ids;
  ReplayCounts counts;  // routers add to it
};

// Replaces ids i32[T,K], the choice of the router of `layer`, by the recorded one. Throws where that has another size.
void use_recorded(Replay& replay, int layer, const Tensor& ids);

// Numbers drawn for a token are keyed by its number in the global batch, so that they do not depend on the rank that holds
// it. Where rows are a selection of tokens, shifted() makes the facts of the rows.
struct TokenFacts {
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t first = 0;            // number of the first token in the global batch of the step
  int64_t sequence_length = 0;  // the tokens are whole sequences of this length; 0: one sequence
  int64_t sequence_stride = 0;  // from the number of one sequence's first token to that of the next; 0: sequence_length
  Tensor position = {};         // i32[T], in its sequence; undefined: as the numbers above say
  Tensor task = {};             // i32[T], -1: none; undefined: no token has one
  Tensor num_experts = {};      // i32[T], the most experts that the token may visit; undefined: the router decides
  Replay* replay = nullptr;     // experts that the tokens visit in place of those that routers choose

  // Of token t of these: its number in the global batch, and its position in its sequence.
  int64_t number_of(int64_t t) const;
  int64_t position_of(int64_t t) const;
};

// What dropout needs to know of `num_rows` tokens; memory comes from the arena.
DropoutRows dropout_rows(Arena& arena, const TokenFacts& tokens, int64_t num_rows);

// The facts of rows that each stand for a token of `tokens`, whose sequences have lost their last token: row i has those of
// token kept[i]; kept i32[T'] has `length` tokens of each sequence, which had `from_length`. Memory comes from the arena.
TokenFacts shifted(Arena& arena, const TokenFacts& tokens, const Tensor& kept, int64_t length, int64_t from_length);

}  // namespace cadre
