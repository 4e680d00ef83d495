// SPDX-License-Identifier: Apache-2.0
// Runs a test body with every exchange strategy on every number of ranks.
#pragma once

#include <gtest/gtest.h>

#include <functional>

#include "comm/exchange/exchange.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::test {

struct ExchangeNeeds {
  int64_t max_tokens;
  int top_k;
  size_t row_bytes;
};

// Space for a few transfers of the needs above, and no more: what does not fit takes the other way.
inline ExchangeSetup setup_of(const Communicator& group, const ExchangeNeeds& needs) {
  return {
      .group = group,
      .topology = discover_topology(group),
      .max_tokens = needs.max_tokens,
      .top_k = needs.top_k,
      .max_row_bytes = needs.row_bytes,
      .memory_bytes = static_cast<size_t>(needs.max_tokens) * static_cast<size_t>(4 * needs.top_k) * needs.row_bytes};
}

// Those that can run between these ranks.
inline std::vector<std::string_view> strategies_for(const Communicator& group) {
  std::vector<std::string_view> strategies(std::begin(kStrategies), std::end(kStrategies));
  if (discover_topology(group).num_hosts() > 1) std::erase(strategies, "shared");
  return strategies;
}

inline void each_exchange(const ExchangeNeeds& needs, const std::function<void(Communicator&, Exchange&)>& body,
                          const std::vector<int>& rank_counts = kRankCounts) {
  on_ranks(
      [&](Communicator& world) {
        for (const std::string_view strategy : strategies_for(world)) {
          SCOPED_TRACE(strategy);
          const auto exchange = make_exchange(strategy, setup_of(world, needs));
          body(world, *exchange);
        }
      },
      rank_counts);
}

}  // namespace cadre::test
