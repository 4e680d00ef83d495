// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/host_route.hpp"

#include <algorithm>

namespace cadre {

HostMap::HostMap(const Topology& topology, int rank)
    : topology_(topology), rank_(rank), ranks_of_host_(static_cast<size_t>(topology.num_hosts())) {
  for (int other = 0; other < topology.num_ranks(); ++other) ranks_of_host_[host_of(other)].push_back(other);
  for (int source = 0; source < topology.num_ranks(); ++source) {
    if (host_of(source) != host() && landing_rank(source, host()) == rank) landing_sources_.push_back(source);
  }
}

int HostMap::landing_rank(int source, int host) const {
  const std::vector<int>& ranks = ranks_of_host_[host];
  return ranks[static_cast<size_t>(local_rank_of(source)) % ranks.size()];
}

HostRows make_host_rows(const DispatchPlan& plan, const HostMap& map, size_t words) {
  HostRows rows;
  rows.counts.assign(static_cast<size_t>(map.num_hosts()), 0);
  const auto each_host_row = [&](auto&& visit) {  // (host, token, first row of the token there, ...) in token order
    std::vector<int64_t> last_token(rows.counts.size(), -1);
    for (int64_t token = 0; token < plan.num_tokens; ++token) {
      for (int32_t i = plan.token_rows[token]; i < plan.token_rows[token + 1]; ++i) {
        const int32_t row = plan.token_row[i];
        const auto above = std::upper_bound(plan.row_offsets.begin(), plan.row_offsets.end(), int64_t{row});
        const int rank = static_cast<int>(above - plan.row_offsets.begin()) - 1;
        const int host = map.host_of(rank);
        if (host == map.host()) continue;
        visit(host, token, map.local_rank_of(rank), last_token[host] != token);
        last_token[host] = token;
      }
    }
  };
  each_host_row(
      [&](int host, int64_t /*token*/, int /*local_rank*/, bool first) { rows.counts[host] += first ? 1 : 0; });
  rows.offsets = offsets_of(rows.counts);
  rows.token.resize(static_cast<size_t>(rows.offsets.back()));
  rows.needs.assign(rows.token.size() * words, 0);
  std::vector<int64_t> next(rows.offsets.begin(), rows.offsets.end() - 1);
  each_host_row([&](int host, int64_t token, int local_rank, bool first) {
    if (first) rows.token[static_cast<size_t>(next[host]++)] = static_cast<int32_t>(token);
    NeedMask::set(rows.needs.data() + static_cast<size_t>(next[host] - 1) * words, local_rank);
  });
  return rows;
}

}  // namespace cadre
