// SPDX-License-Identifier: Apache-2.0
// This rank's part of a global micro-batch. What a global micro-batch consists of depends on step and configuration
// only; the ranks share it evenly, so results do not depend on their number.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/model/model.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/data/order.hpp"

namespace cadre {

// Sequences [first, first + count) of a global batch.
struct SequenceRange {
  int64_t first = 0;
  int64_t count = 0;
};

// Part `index` of `range` cut in `parts`, as even as possible.
SequenceRange part_of(const SequenceRange& range, int64_t index, int64_t parts);

class MicroBatch {
 public:
  // Reads the sequences of `range` of the global batch of `step`.
  MicroBatch(const BatchReader& reader, int64_t step, const SequenceRange& range, int64_t sequence_length);

  // Those of the batch of `step` that begins at `from`.
  MicroBatch(const BatchReader& reader, const DataPosition& from, int64_t step, const SequenceRange& range,
             int64_t sequence_length);

  // Tokens that are at hand: num_sequences * sequence_length ids, and targets of which -1 has no loss. They are sequences of
  // a global batch from `first_sequence` on.
  MicroBatch(std::vector<int32_t> ids, std::vector<int32_t> targets, int64_t num_sequences, int64_t sequence_length,
             int64_t first_sequence = 0);

  // Gives each token a task, unless the data came with tasks. nullptr changes nothing: no token has a task.
  void recognise_tasks(const TaskLabeller* labeller);
  // One task for all tokens.
  void set_task(int32_t task) { tasks_.assign(ids_.size(), task); }

  // Experts that its tokens visit in each mixture layer, see Replay; outlives this object.
  void set_replay(Replay* replay) { replay_ = replay; }

  // Views into this object.
  TokenBatch tokens();
  // Of a run with that seed.
  TokenFacts facts(uint64_t seed);
  // Of the targets of these tokens, for the mean of their losses: their number, where the data has no marks.
  double loss_weight() const { return loss_weight_; }
  int64_t num_tokens() const { return static_cast<int64_t>(ids_.size()); }

 private:
  int64_t step_ = 0;
  int64_t first_sequence_ = 0;
  int64_t num_sequences_;
  int64_t sequence_length_;
  std::vector<int32_t> ids_, targets_, positions_;
  std::vector<int32_t> tasks_;  // empty: none has one
  Replay* replay_ = nullptr;
  BatchMarks marks_;
  double loss_weight_;
};

}  // namespace cadre
