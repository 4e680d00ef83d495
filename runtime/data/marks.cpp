// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/marks.hpp"

#include <xxhash.h>

#include <algorithm>

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

}  // namespace cadre
