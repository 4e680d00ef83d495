// SPDX-License-Identifier: Apache-2.0
// The shared strategy, for ranks of one host: a sender says where its rows are, the receiver reads them there, in
// whatever order it needs them. No row is packed, sent or unpacked. Small elements come as messages.
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/host_share.hpp"

namespace cadre {
namespace {

// Kinds of notices: one for each (direction, unit).
size_t kind_of(Direction direction, Unit unit) {
  return 2 * static_cast<size_t>(direction) + static_cast<size_t>(unit);
}

class SharedTransfer : public RowTransfer {
 public:
  SharedTransfer(const GroupRoute& route, HostMemory& memory, Direction direction, Unit unit, const RowFormat& format)
      : exchange_(route.exchange()),
        sides_(route.sides(direction, unit)),
        tokens_(direction == Direction::to_tokens ? token_order(route.plan(), unit) : TokenOrder{}),
        format_(format),
        share_(memory, exchange_.pool(), kind_of(direction, unit), format.row_bytes()) {}

  ~SharedTransfer() override { exchange_.pool().give_back(std::move(copies_)); }

  void pack(const Elements& rows) override { share_.offer(rows, sides_.out.offsets); }

  void start() override {
    for (size_t peer = 0; peer < sides_.out.counts.size(); ++peer) {
      exchange_.count_traffic(static_cast<int>(peer),
                              sides_.out.counts[peer] * static_cast<int64_t>(format_.row_bytes()));
    }
    share_.post();
    finished_ = share_.arrival(sides_.in.counts);
  }

  Elements unpack() override {
    std::vector<ArrivedRow> rows;
    rows.reserve(static_cast<size_t>(sides_.in.total()));
    for (size_t peer = 0; peer < sides_.in.counts.size(); ++peer) {
      for (int64_t i = 0; i < sides_.in.counts[peer]; ++i)
        rows.push_back({share_.at(static_cast<int>(peer), i), false});
    }
    if (!tokens_.index.empty()) rows = in_token_order(rows);
    Elements elements = arrange(rows, format_, exchange_.pool(), copies_, index_);
    elements.offsets = tokens_.offsets;
    return elements;
  }

  Request& release() override { return released_ = share_.release(); }

 private:
  std::vector<ArrivedRow> in_token_order(const std::vector<ArrivedRow>& rows) const {
    std::vector<ArrivedRow> ordered;
    ordered.reserve(rows.size());
    for (const int32_t i : tokens_.index) ordered.push_back(rows[i]);
    return ordered;
  }

  GroupExchange& exchange_;
  Sides sides_;
  TokenOrder tokens_;
  RowFormat format_;
  HostShare share_;
  Buffer copies_;
  std::vector<int32_t> index_;
};

class SharedRoute : public GroupRoute {
 public:
  SharedRoute(GroupExchange& exchange, HostMemory& memory, DispatchPlan plan)
      : GroupRoute(exchange, std::move(plan)), memory_(memory) {}

  std::unique_ptr<RowTransfer> transfer(Direction direction, Unit unit, const RowFormat& format) override {
    if (format.row_bytes() < kSmallestRowInPlace) return GroupRoute::transfer(direction, unit, format);
    return std::make_unique<SharedTransfer>(*this, memory_, direction, unit, format);
  }

 private:
  HostMemory& memory_;
};

class SharedExchange : public GroupExchange {
 public:
  explicit SharedExchange(const ExchangeSetup& setup)
      : GroupExchange(setup), memory_(setup.group, 2 * setup.max_tokens * setup.top_k, setup.memory_bytes) {}

  std::string_view name() const override { return "shared"; }
  std::span<std::byte> memory() override { return memory_.space(); }
  bool prefers_slots() const override { return true; }
  std::unique_ptr<Route> route(DispatchPlan plan) override {
    return std::make_unique<SharedRoute>(*this, memory_, std::move(plan));
  }

 private:
  HostMemory memory_;
};

}  // namespace

std::unique_ptr<Exchange> make_shared_exchange(const ExchangeSetup& setup) {
  if (setup.topology.num_hosts() != 1) {
    throw Error(ErrorKind::environment,
                fmt::format("exchange.strategy = shared on {} hosts", setup.topology.num_hosts()),
                "use hierarchical, which shares memory inside each host, or keep expert-parallel groups inside a host");
  }
  check_rows_on_host(setup, "shared");
  return std::make_unique<SharedExchange>(setup);
}

}  // namespace cadre
