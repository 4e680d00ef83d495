// SPDX-License-Identifier: Apache-2.0
// What the strategies share: the announcement of counts, buffers, traffic, and messages between pairs of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/exchange/exchange.hpp"
#include "comm/exchange/route.hpp"

namespace cadre {

// Smaller elements are sent as messages, which cost no more than a look at another rank's memory.
inline constexpr size_t kSmallestRowInPlace = 64;

class GroupExchange : public Exchange {
 public:
  explicit GroupExchange(const ExchangeSetup& setup)
      : group_(setup.group),
        topology_(setup.topology),
        device_codec_(setup.device_codec),
        transport_follows_(setup.transport_follows),
        pools_(setup.pools ? setup.pools : std::make_shared<ExchangePools>(setup.device_codec)) {}

  int rank() const override { return group_.rank(); }
  Traffic traffic() const override { return traffic_; }

  const Communicator& group() const { return group_; }
  const Topology& topology() const { return topology_; }
  BufferPool& pool() { return pools_->host; }
  // The codec of rows of that format and the pool of their buffers. Bytes, that is lists and records, stay on the host.
  const RowCodec& codec(const RowFormat& format) const { return is_device_row(format) ? *device_codec_ : host_codec(); }
  BufferPool& pool(const RowFormat& format) { return is_device_row(format) ? pools_->device : pools_->host; }
  // Complete when rows of that format that are being packed may be sent.
  Request packed(const RowFormat& format) const { return transport_follows_ ? Request() : codec(format).done(); }
  bool same_host(int peer) const { return topology_.host_of_rank[peer] == topology_.host_of_rank[group_.rank()]; }
  // `bytes` leave for `peer`, which may be this rank.
  void count_traffic(int peer, int64_t bytes);

 protected:
  bool has_device() const { return device_codec_ != nullptr; }

 private:
  bool is_device_row(const RowFormat& format) const { return has_device() && format.dtype != DType::u8; }

  const Communicator& group_;
  Topology topology_;
  const RowCodec* device_codec_;
  bool transport_follows_;
  std::shared_ptr<ExchangePools> pools_;
  Traffic traffic_;
};

// Announces counts, and one further number per peer where a strategy needs one; sends everything as messages.
class GroupRoute : public Route {
 public:
  GroupRoute(GroupExchange& exchange, DispatchPlan plan) : Route(std::move(plan)), exchange_(exchange) {}

  Request& announce() override;
  void learn_counts() override;
  std::unique_ptr<RowTransfer> transfer(Direction direction, Unit unit, const RowFormat& format) override;

  GroupExchange& exchange() const { return exchange_; }

 protected:
  virtual int64_t extra_for(int /*peer*/) const { return 0; }
  virtual void learn_extra(std::vector<int64_t> /*of_peer*/) {}

 private:
  GroupExchange& exchange_;
  Pending<std::vector<int64_t>> announced_;
};

// make_exchange calls them on all ranks with the same setup.
#define CADRE_DECLARE_MAKER(name) std::unique_ptr<Exchange> make_##name##_exchange(const ExchangeSetup& setup);
CADRE_EXCHANGE_STRATEGIES(CADRE_DECLARE_MAKER)
#undef CADRE_DECLARE_MAKER

// For strategies that read rows in host memory. Throws ErrorKind::environment where rows lie on a device.
void check_rows_on_host(const ExchangeSetup& setup, std::string_view strategy);

}  // namespace cadre
