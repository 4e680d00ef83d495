// SPDX-License-Identifier: Apache-2.0
// What is known of the tokens of training data beside their ids: where documents begin, and how much the loss of a token
// counts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cadre {

// Of all tokens of a data set, in order.
struct TokenMarks {
  std::vector<uint8_t> begins;  // 1: a document begins with the token
  std::vector<float> weights;   // of the loss where the token is the target; 0: it does not count
};

// XXH64 of both lists.
uint64_t fingerprint(const TokenMarks& marks);

// Of the sequences of a batch, one after the other, as the model takes them (Sequences::documents, TokenBatch::weights).
struct BatchMarks {
  std::vector<int64_t> documents;  // their lengths; empty: each sequence is one
  std::vector<float> weights;      // of each target; empty: all are 1
  bool has_weights() const;        // whether one is neither 0 nor 1
};

// Where documents begin and what counts, for one kind of data.
struct Marking {
  int32_t document_end = -1;          // the token that ends a document; -1: none
  const TokenMarks* marks = nullptr;  // in place of it
};

// Of a window of sequence_length + 1 tokens, of which the first is token `first` of the data: sets targets [sequence_length]
// that lie across a boundary or do not count to -1, and appends to `marks`. Returns the weight of the others.
double mark_window(const Marking& marking, int64_t first, std::span<const int32_t> window, std::span<int32_t> targets,
                   BatchMarks& marks);

// Documents of different lengths to sequences of one length.

// The documents of each sequence, by index. No document is longer than a sequence, and none is cut. The longest come first,
// each into the fullest sequence that has room (best-fit decreasing: Johnson et al. 1974); then sequences are ordered by
// their first document in the data, and documents in a sequence too. A pure function of its arguments.
std::vector<std::vector<size_t>> pack(std::span<const int64_t> lengths, int64_t sequence_length);

}  // namespace cadre
