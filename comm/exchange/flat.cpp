// SPDX-License-Identifier: Apache-2.0
// The flat strategy: messages between all pairs of ranks, and nothing else.
#include "comm/exchange/group_exchange.hpp"

namespace cadre {
namespace {

class FlatExchange : public GroupExchange {
 public:
  using GroupExchange::GroupExchange;

  std::string_view name() const override { return "flat"; }
  bool packs_later() const override { return has_device(); }

  std::unique_ptr<RowTransfer> transfer(const Route& route, Direction direction, Unit unit,
                                        const RowFormat& format) override {
    return make_message_transfer(*this, route, direction, unit, format);
  }
};

}  // namespace

std::unique_ptr<Exchange> make_flat_exchange(const ExchangeSetup& setup) {
  return std::make_unique<FlatExchange>(setup);
}

}  // namespace cadre
