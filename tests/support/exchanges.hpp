// SPDX-License-Identifier: Apache-2.0
// Every exchange strategy, on every layout of hosts that the ranks at hand can play.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "comm/exchange/exchange.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::test {

struct ExchangeNeeds {
  int64_t max_tokens;
  int top_k;
  size_t row_bytes;
};

// Space for a few transfers of the needs above, and no more: what does not fit takes the other way.
inline ExchangeSetup setup_of(const Communicator& group, const Topology& topology, const ExchangeNeeds& needs) {
  return {
      .group = group,
      .topology = topology,
      .max_tokens = needs.max_tokens,
      .top_k = needs.top_k,
      .max_row_bytes = needs.row_bytes,
      .memory_bytes = static_cast<size_t>(needs.max_tokens) * static_cast<size_t>(4 * needs.top_k) * needs.row_bytes};
}

struct ExchangeVariant {
  std::string strategy;
  std::string hosts;
  Topology topology;

  std::string describe() const { return strategy + ", " + hosts; }
};

// Ranks of one host can also play several: the first third (at least one rank) and the rest, or every rank a host.
// Rows of a device travel as messages.
enum class RowsOf { host, device };
inline std::vector<ExchangeVariant> exchange_variants(const Communicator& group, RowsOf rows = RowsOf::host) {
  const Topology real = discover_topology(group);
  std::vector<ExchangeVariant> variants;
  for (const std::string_view strategy : kStrategies) {
    if (strategy == "shared" && real.num_hosts() > 1) continue;
    if (rows == RowsOf::device && (strategy == "shared" || strategy == "hierarchical")) continue;
    variants.push_back({std::string(strategy), "hosts as they are", real});
  }
  if (real.num_hosts() > 1 || group.size() == 1 || rows == RowsOf::device) return variants;
  std::vector<int> leaders(static_cast<size_t>(group.size()), 0);
  const std::vector<std::string> names(leaders.size(), "host");
  const int num_first = (group.size() + 2) / 3;
  for (int rank = num_first; rank < group.size(); ++rank) leaders[static_cast<size_t>(rank)] = num_first;
  variants.push_back({"hierarchical", "two uneven hosts", Topology::from_leaders(leaders, names)});
  variants.push_back({"hierarchical", "a host a rank", Topology::uniform(group.size(), 1)});
  if (group.size() % 2 == 0) {
    variants.push_back({"hierarchical", "two hosts", Topology::uniform(2, group.size() / 2)});
    for (size_t rank = 0; rank < leaders.size(); ++rank) leaders[rank] = static_cast<int>(rank % 2);
    variants.push_back({"hierarchical", "two hosts, ranks dealt out", Topology::from_leaders(leaders, names)});
  }
  return variants;
}

inline void each_exchange(const ExchangeNeeds& needs, const std::function<void(Communicator&, Exchange&)>& body,
                          const std::vector<int>& rank_counts = kRankCounts) {
  on_ranks(
      [&](Communicator& world) {
        for (const ExchangeVariant& variant : exchange_variants(world)) {
          SCOPED_TRACE(variant.describe());
          const auto exchange = make_exchange(variant.strategy, setup_of(world, variant.topology, needs));
          body(world, *exchange);
        }
      },
      rank_counts);
}

}  // namespace cadre::test
