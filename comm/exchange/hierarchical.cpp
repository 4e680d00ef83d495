// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/hierarchical.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

int largest_host(const Topology& topology) {
  int largest = 0;
  for (int host = 0; host < topology.num_hosts(); ++host) largest = std::max(largest, topology.ranks_on_host(host));
  return largest;
}

}  // namespace

HierarchicalExchange::HierarchicalExchange(const ExchangeSetup& setup, int64_t landing_rows)
    : GroupExchange(setup),
      map_(setup.topology, setup.group.rank()),
      need_words_(NeedMask(largest_host(setup.topology)).words()),
      host_(setup.group.split(map_.host(), setup.group.rank(), "host")),
      landing_bytes_(whole_cache_lines(static_cast<size_t>(landing_rows) * setup.max_row_bytes)),
      memory_(host_, 2 * (setup.max_tokens * setup.top_k + landing_rows), 2 * landing_bytes_ + setup.memory_bytes) {}

Request HierarchicalExchange::announce(Route& route) {
  route.between_hosts = std::make_shared<HostRoute>();
  route.between_hosts->out = make_host_rows(route.plan, map_, need_words_);
  return GroupExchange::announce(route);
}

int64_t HierarchicalExchange::extra_for(const Route& route, int peer) const {
  const int host = map_.host_of(peer);
  if (host == map_.host() || map_.landing_rank(group().rank(), host) != peer) return 0;
  return route.between_hosts->out.counts[host];
}

void HierarchicalExchange::learn_counts(Route& route) {
  GroupExchange::learn_counts(route);
  HostRoute& hosts = *route.between_hosts;
  hosts.landing_counts.clear();
  for (const int source : map_.landing_sources()) hosts.landing_counts.push_back(route.receive.extra[source]);
  hosts.landing_offsets = offsets_of(hosts.landing_counts);
  checked_int(hosts.landing_offsets.back(), "rows to land here");  // their indices are 32 bits wide
  hosts.landing_needs.resize(static_cast<size_t>(hosts.landing_offsets.back()) * need_words_);
}

std::unique_ptr<RowTransfer> HierarchicalExchange::transfer(const Route& route, Direction direction, Unit unit,
                                                            const RowFormat& format) {
  if (format.row_bytes() < kSmallestRowInPlace || (direction == Direction::to_experts && unit == Unit::slot)) {
    return make_message_transfer(*this, route, direction, unit, format);
  }
  if (direction == Direction::to_experts) return make_host_dispatch(*this, route, format);
  return unit == Unit::row ? make_host_sums(*this, route, format) : make_host_slots(*this, route, format);
}

std::span<std::byte> HierarchicalExchange::landing_space(uint64_t epoch, size_t bytes) const {
  return bytes > landing_bytes_ ? std::span<std::byte>() : memory_.space().subspan((epoch % 2) * landing_bytes_, bytes);
}

std::unique_ptr<Exchange> make_hierarchical_exchange(const ExchangeSetup& setup) {
  const ExchangeSetup alike = alike_on_all_ranks(setup);
  // Every rank of a host can have as many rows land as the one with most.
  const HostMap map(alike.topology, alike.group.rank());
  const int64_t rows = static_cast<int64_t>(map.landing_sources().size()) * alike.max_tokens;
  const int64_t most_rows = wait(alike.group.all_reduce(rows, ReduceOp::max));
  return made_on_all_ranks(alike.group, "hierarchical",
                           [&] { return std::make_unique<HierarchicalExchange>(alike, most_rows); });
}

}  // namespace cadre
