// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/marks.hpp"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "comm/base/check.hpp"

namespace cadre {

uint64_t fingerprint(const TokenMarks& marks) {
  const auto weights = std::as_bytes(std::span(marks.weights));
  return XXH64(marks.begins.data(), marks.begins.size(), XXH64(weights.data(), weights.size(), 0));
}

bool BatchMarks::has_weights() const {
  return std::ranges::any_of(weights, [](float weight) { return weight != 0.0F && weight != 1.0F; });
}

double mark_window(const Marking& marking, int64_t first, std::span<const int32_t> window, std::span<int32_t> targets,
                   BatchMarks& marks) {
  CADRE_ASSERT(window.size() == targets.size() + 1);
  const TokenMarks* known = marking.marks;
  double sum = 0.0;
  int64_t length = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    const size_t next = static_cast<size_t>(first) + i + 1;
    const float weight = known == nullptr ? 1.0F : known->weights[next];
    const bool ends = known == nullptr ? window[i] == marking.document_end : known->begins[next] != 0;
    ++length;
    if (ends || i + 1 == targets.size()) {
      marks.documents.push_back(length);
      length = 0;
    }
    marks.weights.push_back(weight);
    if (ends || weight == 0.0F) {
      targets[i] = -1;
    } else {
      sum += static_cast<double>(weight);
    }
  }
  return sum;
}

std::vector<std::vector<size_t>> pack(std::span<const int64_t> lengths, int64_t sequence_length) {
  std::vector<size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<size_t>> sequences;
  std::multimap<int64_t, size_t> room;  // tokens that still fit, and the sequence
  for (const size_t document : order) {
    CADRE_ASSERT(lengths[document] >= 1 && lengths[document] <= sequence_length);
    auto fullest = room.lower_bound(lengths[document]);
    if (fullest == room.end()) {
      fullest = room.emplace(sequence_length, sequences.size());
      sequences.emplace_back();
    }
    const auto [left, sequence] = *fullest;
    sequences[sequence].push_back(document);
    room.erase(fullest);
    if (left > lengths[document]) room.emplace(left - lengths[document], sequence);
  }
  for (std::vector<size_t>& documents : sequences) std::ranges::sort(documents);
  std::ranges::sort(sequences, {}, [](const std::vector<size_t>& documents) { return documents.front(); });
  return sequences;
}

}  // namespace cadre
