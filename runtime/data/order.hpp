// SPDX-License-Identifier: Apache-2.0
// Which sequences a step reads. The data is cut in windows; every epoch visits each of them once, in an order that is a
// pure function of (seed, epoch). So a step needs no state to resume from, and what a rank reads depends only on its
// place in the global batch, not on the number of ranks.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/data/token_source.hpp"

namespace cadre {

// A permutation of [0, size) that takes no memory: a Feistel network over the next power of four, walked until it is
// back inside (Black and Rogaway 2002).
class Permutation {
 public:
  Permutation(int64_t size, uint64_t seed, int64_t epoch);

  int64_t operator()(int64_t index) const;

 private:
  uint64_t feistel(uint64_t value) const;

  uint64_t size_;
  uint64_t seed_;
  uint64_t epoch_;
  int half_bits_ = 1;
};

// Batches of sequences. Window w covers tokens [w S, w S + S], so neighbours share one token and every token but the
// first is a target once an epoch. A batch that the end of an epoch cuts goes on with the next one.
class BatchReader {
 public:
  // `tokens` holds at least one window of sequence_length + 1.
  BatchReader(TokenSource tokens, int64_t sequence_length, int64_t batch, uint64_t seed);

  int64_t num_windows() const { return num_windows_; }

  // The window that sequence `index` of the global batch reads at `step` (from 0).
  int64_t window(int64_t step, int64_t index) const;

  // Sequences [first_sequence, first_sequence + count) of the global batch of `step`. tokens, targets: [count, S].
  void fill_batch(int64_t step, int64_t first_sequence, int64_t count, std::span<int32_t> tokens,
                  std::span<int32_t> targets) const;

 private:
  TokenSource tokens_;
  int64_t sequence_length_;
  int64_t batch_;
  uint64_t seed_;
  int64_t num_windows_;
};

}  // namespace cadre
