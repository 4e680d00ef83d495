// SPDX-License-Identifier: Apache-2.0
// Documents of different lengths to sequences of one length.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cadre {

// The documents of each sequence, by index. No document is longer than a sequence, and none is cut. The longest come first,
// each into the fullest sequence that has room (best-fit decreasing: Johnson et al. 1974); then sequences are ordered by
// their first document in the data, and documents in a sequence too. A pure function of its arguments.
std::vector<std::vector<size_t>> pack(std::span<const int64_t> lengths, int64_t sequence_length);

}  // namespace cadre
