// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/pair_merges.hpp"

#include <cstddef>
#include <functional>
#include <queue>

namespace cadre {
namespace {

constexpr int32_t kMergedAway = -1;

uint64_t key_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// A pair that may be merged; `at` is its left token. It is out of date when another merge took one of the two.
struct Candidate {
  int32_t rank;
  size_t at;

  auto operator<=>(const Candidate&) const = default;
};

}  // namespace

void PairMerges::add(int32_t left, int32_t right, int32_t merged) { add(left, right, merged, num_added_++); }

void PairMerges::add(int32_t left, int32_t right, int32_t merged, int32_t rank) {
  rules_.insert_or_assign(key_of(left, right), Rule{rank, merged});
}

std::optional<PairMerges::Rule> PairMerges::rule_of(int32_t left, int32_t right) const {
  const auto found = rules_.find(key_of(left, right));
  return found == rules_.end() ? std::nullopt : std::optional(found->second);
}

std::vector<int32_t> PairMerges::merge(std::vector<int32_t> tokens) const {
  const size_t count = tokens.size();
  std::vector<size_t> next(count);
  std::vector<size_t> previous(count);
  for (size_t i = 0; i < count; ++i) next[i] = i + 1, previous[i] = i - 1;

  const auto rule_at = [&](size_t at) -> std::optional<Rule> {
    if (at >= count || tokens[at] == kMergedAway || next[at] >= count) return std::nullopt;
    return rule_of(tokens[at], tokens[next[at]]);
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](size_t at) {
    if (const auto rule = rule_at(at)) candidates.push({rule->rank, at});
  };
  for (size_t i = 0; i < count; ++i) consider(i);
  while (!candidates.empty()) {
    const auto [rank, at] = candidates.top();
    candidates.pop();
    const auto rule = rule_at(at);
    if (!rule || rule->rank != rank) continue;
    tokens[at] = rule->merged;
    tokens[next[at]] = kMergedAway;
    next[at] = next[next[at]];
    if (next[at] < count) previous[next[at]] = at;
    consider(previous[at]);
    consider(at);
  }
  std::erase(tokens, kMergedAway);
  return tokens;
}

}  // namespace cadre
