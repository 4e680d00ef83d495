// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/hierarchical.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

int largest_host(const Topology& topology) {
  std::vector<int> ranks(static_cast<size_t>(topology.num_hosts()), 0);
  for (const int host : topology.host_of_rank) ++ranks[static_cast<size_t>(host)];
  return std::ranges::max(ranks);
}

}  // namespace

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

HierarchicalExchange::HierarchicalExchange(const ExchangeSetup& setup, int64_t landing_rows)
    : GroupExchange(setup),
      map_(setup.topology, setup.group.rank()),
      need_words_(NeedMask(largest_host(setup.topology)).words()),
      host_(setup.group.split(map_.host(), setup.group.rank(), "host")),
      landing_bytes_(whole_cache_lines(static_cast<size_t>(landing_rows) * setup.max_row_bytes)),
      memory_(host_, 2 * (setup.max_tokens * setup.top_k + landing_rows), 2 * landing_bytes_ + setup.memory_bytes) {}

std::span<std::byte> HierarchicalExchange::landing_space(uint64_t epoch, size_t bytes) const {
  return bytes > landing_bytes_ ? std::span<std::byte>() : memory_.space().subspan((epoch % 2) * landing_bytes_, bytes);
}

std::unique_ptr<Route> HierarchicalExchange::route(DispatchPlan plan) {
  return std::make_unique<HierarchicalRoute>(*this, std::move(plan));
}

HierarchicalRoute::HierarchicalRoute(HierarchicalExchange& exchange, DispatchPlan plan)
    : GroupRoute(exchange, std::move(plan)), hierarchy_(exchange), hosts_(std::make_shared<HostRoute>()) {
  hosts_->out = make_host_rows(plan_, exchange.map(), exchange.need_words());
}

int64_t HierarchicalRoute::extra_for(int peer) const {
  const HostMap& map = hierarchy_.map();
  const int host = map.host_of(peer);
  if (host == map.host() || map.landing_rank(hierarchy_.rank(), host) != peer) return 0;
  return hosts_->out.counts[host];
}

void HierarchicalRoute::learn_extra(std::vector<int64_t> of_peer) {
  for (const int source : hierarchy_.map().landing_sources()) hosts_->landing_counts.push_back(of_peer[source]);
  hosts_->landing_offsets = offsets_of(hosts_->landing_counts);
  checked_int(hosts_->landing_offsets.back(), "rows to land here");  // their indices are 32 bits wide
  hosts_->landing_needs.resize(static_cast<size_t>(hosts_->landing_offsets.back()) * hierarchy_.need_words());
}

std::unique_ptr<RowTransfer> HierarchicalRoute::transfer(Direction direction, Unit unit, const RowFormat& format) {
  if (format.row_bytes() < kSmallestRowInPlace || (direction == Direction::to_experts && unit == Unit::slot)) {
    return GroupRoute::transfer(direction, unit, format);
  }
  if (direction == Direction::to_experts) return make_host_dispatch(*this, format);
  return unit == Unit::row ? make_host_sums(*this, format) : make_host_slots(*this, format);
}

std::unique_ptr<Exchange> make_hierarchical_exchange(const ExchangeSetup& setup) {
  check_rows_on_host(setup, "hierarchical");
  // Every rank of a host can have as many rows land as the one with most.
  const HostMap map(setup.topology, setup.group.rank());
  const int64_t rows = static_cast<int64_t>(map.landing_sources().size()) * setup.max_tokens;
  const int64_t most_rows = wait(setup.group.all_reduce(rows, ReduceOp::max));
  return std::make_unique<HierarchicalExchange>(setup, most_rows);
}

}  // namespace cadre
