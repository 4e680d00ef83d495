// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/micro_batch.hpp"

#include <utility>

namespace cadre {
namespace {

Tensor view(std::vector<int32_t>& values) { return {values.data(), DType::i32, {static_cast<int64_t>(values.size())}}; }

}  // namespace

SequenceRange part_of(const SequenceRange& range, int64_t index, int64_t parts) {
  const int64_t begin = range.count * index / parts;
  const int64_t end = range.count * (index + 1) / parts;
  return {range.first + begin, end - begin};
}

MicroBatch::MicroBatch(const BatchReader& reader, int64_t step, const SequenceRange& range, int64_t sequence_length)
    : MicroBatch(reader, reader.at_step(step), step, range, sequence_length) {}

MicroBatch::MicroBatch(const BatchReader& reader, const DataPosition& from, int64_t step, const SequenceRange& range,
                       int64_t sequence_length)
    : step_(step),
      first_sequence_(range.first),
      num_sequences_(range.count),
      sequence_length_(sequence_length),
      ids_(static_cast<size_t>(range.count * sequence_length)),
      targets_(ids_.size()),
      positions_(ids_.size()) {
  loss_weight_ = reader.fill_batch(from, range.first, range.count, ids_, targets_, &marks_);
  for (int64_t i = 0; reader.has_tasks() && i < range.count; ++i) {
    tasks_.insert(tasks_.end(), static_cast<size_t>(sequence_length), reader.task(from, range.first + i));
  }
  fill_positions(tokens().sequences, 0);
}

MicroBatch::MicroBatch(std::vector<int32_t> ids, std::vector<int32_t> targets, int64_t num_sequences,
                       int64_t sequence_length, int64_t first_sequence)
    : first_sequence_(first_sequence),
      num_sequences_(num_sequences),
      sequence_length_(sequence_length),
      ids_(std::move(ids)),
      targets_(std::move(targets)),
      positions_(ids_.size()),
      loss_weight_(static_cast<double>(ids_.size())) {
  fill_positions(tokens().sequences, 0);
}

void MicroBatch::recognise_tasks(const TaskLabeller* labeller) {
  if (labeller != nullptr && tasks_.empty()) tasks_ = labeller->label(ids_, sequence_length_);
}

TokenBatch MicroBatch::tokens() {
  Tensor weights;
  if (marks_.has_weights()) weights = Tensor(marks_.weights.data(), DType::f32, {num_tokens()});
  return {view(ids_), view(targets_), {num_sequences_, sequence_length_, view(positions_), marks_.documents}, weights};
}

TokenFacts MicroBatch::facts(uint64_t seed) {
  return {.seed = seed,
          .step = step_,
          .first = first_sequence_ * sequence_length_,
          .sequence_length = sequence_length_,
          .position = marks_.documents.empty() ? Tensor() : view(positions_),
          .task = tasks_.empty() ? Tensor() : view(tasks_),
          .replay = replay_};
}

}  // namespace cadre
