// SPDX-License-Identifier: Apache-2.0
// Which sequences a step reads. The data is cut in windows; every pass over it visits each of them once, in an order that
// is a pure function of (seed, pass). How far a run has come is a DataPosition; what a rank reads depends on that and on its
// place in the global batch, not on the number of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/config/parsed_keys.hpp"
#include "runtime/data/marks.hpp"
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

// How far a run has come in its data: windows [0, window) of the order of pass `pass` are done. A change of the batch moves
// nothing; one of the seed takes effect with the next pass.
struct DataPosition {
  int64_t pass = 0;
  int64_t window = 0;
  uint64_t seed = 0;            // of the order of this pass
  int64_t sequence_length = 0;  // that the windows have
  int64_t num_tokens = 0;       // of the data
  uint64_t fingerprint = 0;     // of its tokens

  bool operator==(const DataPosition&) const = default;
};

// A set of data that sequences are drawn from.
struct DataPart {
  TokenSource tokens;
  int32_t task = kNoTask;                        // of all its tokens
  int64_t weight = 1;                            // sequences of each round of the sum of all weights
  int32_t document_end = -1;                     // token that ends a document, where these are told apart
  std::shared_ptr<const TokenMarks> marks = {};  // of all its tokens

  Marking marking() const { return {document_end, marks.get()}; }
  bool is_marked() const { return document_end >= 0 || marks != nullptr; }
};

int64_t num_windows(const DataPart& part, int64_t sequence_length);
int64_t num_tokens(const std::vector<DataPart>& parts);
// Of the tokens, tasks and weights of all parts; of one without a task, that of its tokens.
uint64_t fingerprint(const std::vector<DataPart>& parts);

// The same parts, weighed so that one round reads each window of each of them once.
std::vector<DataPart> each_window_once(std::vector<DataPart> parts, int64_t sequence_length);

// Batches of sequences. Sequence n of a run belongs to round n / W, W the sum of the weights of the parts; in each round
// every part is drawn from as often as its weight says, in an order of its own. Window w covers tokens [w S, w S + S], so neighbours share one token and every token but the
// first is a target once an epoch of its part. A batch that the end of an epoch cuts goes on with the next one.
class BatchReader {
 public:
  // Each part holds at least one window of sequence_length + 1.
  BatchReader(std::vector<DataPart> parts, int64_t sequence_length, int64_t batch, uint64_t seed);
  BatchReader(TokenSource tokens, int64_t sequence_length, int64_t batch, uint64_t seed);

  int64_t num_windows() const { return num_windows_; }  // of all parts
  bool has_tasks() const;
  bool has_marks() const;

  // What sequence `index` of the batch reads that begins at `from`: the part, and the window of it.
  struct Place {
    size_t part = 0;
    int64_t window = 0;
  };
  Place place(const DataPosition& from, int64_t index) const;
  int64_t window(const DataPosition& from, int64_t index) const { return place(from, index).window; }
  int32_t task(const DataPosition& from, int64_t index) const { return parts_[place(from, index).part].task; }

  // The beginning of the first pass, without a fingerprint. A pass is as many windows as all parts have together.
  DataPosition begin() const;
  // `from` and so many windows more.
  DataPosition advance(const DataPosition& from, int64_t num_windows) const;
  // Where the batch of `step` (from 0) begins, if all batches are of one size.
  DataPosition at_step(int64_t step) const { return advance(begin(), step * batch_); }
  // As below, of the batch that begins at `from`. Where the data has marks, targets that do not count are -1, `marks`, if
  // given, receives those of these sequences, and the result is the weight of all targets; else their number.
  double fill_batch(const DataPosition& from, int64_t first_sequence, int64_t count, std::span<int32_t> tokens,
                    std::span<int32_t> targets, BatchMarks* marks = nullptr) const;
  // The weight of all targets of sequences [0, count) of the batch that begins at `from`, added up sequence by sequence, so
  // that it is the same for every division of the batch. Reads them where the data has marks.
  double weight_of_batch(const DataPosition& from, int64_t count) const;

  // The window that sequence `index` of the global batch reads at `step` (from 0).
  int64_t window(int64_t step, int64_t index) const { return window(at_step(step), index); }

  // Sequences [first_sequence, first_sequence + count) of the global batch of `step`. tokens, targets: [count, S].
  void fill_batch(int64_t step, int64_t first_sequence, int64_t count, std::span<int32_t> tokens,
                  std::span<int32_t> targets) const;

 private:
  std::vector<DataPart> parts_;
  int64_t sequence_length_;
  int64_t batch_;
  uint64_t seed_;
  int64_t total_weight_ = 0;
  int64_t num_windows_ = 0;
};

// Where a run goes on that has come to `saved`, with the data and sequence length of `reader`, whose fingerprint is given.
// The same windows in the same order where neither changed; else a new pass begins. `note` says so, if there is anything to
// say.
struct ResumedPosition {
  DataPosition position;
  std::string note;
};
ResumedPosition resume_position(const DataPosition& saved, const BatchReader& reader, uint64_t fingerprint);

}  // namespace cadre
