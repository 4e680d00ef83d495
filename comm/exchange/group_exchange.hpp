// SPDX-License-Identifier: Apache-2.0
// What the strategies have in common: the announcement of counts, buffers, traffic, and messages between pairs of ranks.
#pragma once

#include <memory>
#include <vector>

#include "comm/base/buffer_pool.hpp"
#include "comm/exchange/exchange.hpp"

namespace cadre {

// Below this the shared strategy sends messages: they cost no more than a look at another rank's memory.
inline constexpr size_t kSmallestRowInPlace = 64;

class GroupExchange : public Exchange {
 public:
  explicit GroupExchange(const ExchangeSetup& setup) : group_(setup.group), topology_(setup.topology) {}

  Request announce(Route& route) override;
  void learn_counts(Route& route) override;
  Traffic traffic() const override { return traffic_; }

  const Communicator& group() const { return group_; }
  const Topology& topology() const { return topology_; }
  BufferPool& pool() { return pool_; }
  bool same_host(int peer) const { return topology_.host_of_rank[peer] == topology_.host_of_rank[group_.rank()]; }
  // `bytes` leave for `peer`, which may be this rank.
  void count_traffic(int peer, int64_t bytes);

 protected:
  // A number more that `peer` is told about the plan: ReceiveCounts::extra.
  virtual int64_t extra_for(const Route& /*route*/, int /*peer*/) const { return 0; }

 private:
  const Communicator& group_;
  Topology topology_;
  BufferPool pool_;
  Traffic traffic_;
};

// Memory that ranks share is laid out alike on all of them: as the one that wants most. Collective.
ExchangeSetup alike_on_all_ranks(const ExchangeSetup& setup);

// Rows are packed by destination, each pair of ranks exchanges one message, and what stays on this rank is copied once,
// straight to where it is received.
std::unique_ptr<RowTransfer> make_message_transfer(GroupExchange& exchange, const Route& route, Direction direction,
                                                   Unit unit, const RowFormat& format);

}  // namespace cadre
