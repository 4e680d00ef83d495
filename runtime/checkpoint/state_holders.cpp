// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/state_holders.hpp"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"

namespace cadre {

std::vector<std::vector<uint64_t>> gather_lists(const Communicator& world, double deadline_seconds, const Position& at,
                                                std::vector<uint64_t> mine) {
  const auto ranks = static_cast<size_t>(world.size());
  const std::vector<int64_t> lengths = wait(world.all_gather(static_cast<int64_t>(mine.size())), deadline_seconds, at);
  CADRE_CHECK_PEER(std::ranges::min(lengths) >= 0, "a rank announces a list of negative length");
  const auto longest = static_cast<size_t>(std::ranges::max(lengths));
  mine.resize(longest);
  const std::vector<uint64_t> all = wait(world.all_gather(mine), deadline_seconds, at);
  std::vector<std::vector<uint64_t>> lists;
  for (size_t rank = 0; rank < ranks; ++rank) {
    const uint64_t* first = all.data() + rank * longest;
    lists.emplace_back(first, first + lengths[rank]);
  }
  return lists;
}

std::vector<std::vector<int>> givers_of(const std::vector<std::vector<uint64_t>>& wanted,
                                        const std::vector<std::vector<uint64_t>>& held) {
  std::unordered_map<uint64_t, std::vector<int>> holders;  // ascending
  for (size_t rank = 0; rank < held.size(); ++rank) {
    for (const uint64_t key : held[rank]) {
      std::vector<int>& ranks = holders[key];
      if (ranks.empty() || ranks.back() != static_cast<int>(rank)) ranks.push_back(static_cast<int>(rank));
    }
  }
  std::vector<std::vector<int>> givers(wanted.size());
  for (size_t rank = 0; rank < wanted.size(); ++rank) {
    for (const uint64_t key : wanted[rank]) {
      const auto found = holders.find(key);
      if (found == holders.end()) return {};
      const std::vector<int>& ranks = found->second;
      const bool has_it = std::ranges::binary_search(ranks, static_cast<int>(rank));
      givers[rank].push_back(has_it ? static_cast<int>(rank) : ranks[rank % ranks.size()]);
    }
  }
  return givers;
}

}  // namespace cadre
