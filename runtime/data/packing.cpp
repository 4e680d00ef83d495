// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/packing.hpp"

#include <algorithm>
#include <map>
#include <numeric>

#include "comm/base/check.hpp"

namespace cadre {

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
