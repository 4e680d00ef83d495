// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

namespace cadre {

// The second half of a byte-level tokenizer: which neighbours become one token, and which of them first (byte-pair
// encoding; Sennrich, Haddow and Birch 2016).
class PairMerges {
 public:
  // A rule that comes after all that were added; added again, it moves.
  void add(int32_t left, int32_t right, int32_t merged);
  // A rule of this rank; those of one rank are of one order.
  void add(int32_t left, int32_t right, int32_t merged, int32_t rank);

  // Merges the pair whose rule comes first, of equal ones the leftmost, until no rule applies. O(n log n) for n tokens.
  std::vector<int32_t> merge(std::vector<int32_t> tokens) const;

 private:
  struct Rule {
    int32_t rank;
    int32_t merged;
  };

  std::optional<Rule> rule_of(int32_t left, int32_t right) const;

  std::unordered_map<uint64_t, Rule> rules_;
  int32_t num_added_ = 0;
};

}  // namespace cadre
