// SPDX-License-Identifier: Apache-2.0
// What the strategies have in common: the announcement of counts, buffers, traffic, and messages between pairs of ranks.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/exchange/exchange.hpp"

namespace cadre {

// Below this the shared strategy sends messages: they cost no more than a look at another rank's memory.
inline constexpr size_t kSmallestRowInPlace = 64;

class GroupExchange : public Exchange {
 public:
  explicit GroupExchange(const ExchangeSetup& setup)
      : group_(setup.group),
        topology_(setup.topology),
        device_codec_(setup.device_codec),
        transport_follows_(setup.transport_follows),
        device_pool_(setup.device_codec == nullptr ? host_memory() : setup.device_codec->memory(), Outgrown::kept) {}

  Request announce(Route& route) override;
  void learn_counts(Route& route) override;
  Traffic traffic() const override { return traffic_; }

  const Communicator& group() const { return group_; }
  const Topology& topology() const { return topology_; }
  BufferPool& pool() { return pool_; }
  // Who packs rows of that format, and the buffers for it. Bytes, that is lists and records, are the host's.
  const RowCodec& codec(const RowFormat& format) const { return is_device_row(format) ? *device_codec_ : host_codec(); }
  BufferPool& pool(const RowFormat& format) { return is_device_row(format) ? device_pool_ : pool_; }
  // Complete when rows of that format that are being packed may be sent.
  Request packed(const RowFormat& format) const { return transport_follows_ ? Request() : codec(format).done(); }
  bool same_host(int peer) const { return topology_.host_of_rank[peer] == topology_.host_of_rank[group_.rank()]; }
  // `bytes` leave for `peer`, which may be this rank.
  void count_traffic(int peer, int64_t bytes);

 protected:
  // A number more that `peer` is told about the plan: ReceiveCounts::extra.
  virtual int64_t extra_for(const Route& /*route*/, int /*peer*/) const { return 0; }

  bool has_device() const { return device_codec_ != nullptr; }

 private:
  bool is_device_row(const RowFormat& format) const { return has_device() && format.dtype != DType::u8; }

  const Communicator& group_;
  Topology topology_;
  const RowCodec* device_codec_;
  bool transport_follows_;
  BufferPool pool_;
  BufferPool device_pool_;
  Traffic traffic_;
};

// Memory that ranks share is laid out alike on all of them: as the one that wants most. Collective.
ExchangeSetup alike_on_all_ranks(const ExchangeSetup& setup);

// Collective over `group`: an exchange that exists on all its ranks, or the error of the first rank that could not make its
// part, thrown on all of them. So the ranks of a group never run different strategies.
std::unique_ptr<Exchange> made_on_all_ranks(const Communicator& group, const char* strategy,
                                            const std::function<std::unique_ptr<Exchange>()>& make);

// Rows are packed by destination, each pair of ranks exchanges one message, and what stays on this rank is copied once,
// straight to where it is received.
std::unique_ptr<RowTransfer> make_message_transfer(GroupExchange& exchange, const Route& route, Direction direction,
                                                   Unit unit, const RowFormat& format);

}  // namespace cadre
