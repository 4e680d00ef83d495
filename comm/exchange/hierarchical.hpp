// SPDX-License-Identifier: Apache-2.0
// The hierarchical strategy's own pieces, one file a way: dispatch, partial sums, slots.
#pragma once

#include <memory>
#include <vector>

#include "comm/exchange/host_route.hpp"
#include "comm/exchange/host_share.hpp"

namespace cadre {

class HierarchicalExchange : public GroupExchange {
 public:
  HierarchicalExchange(const ExchangeSetup& setup, int64_t landing_rows);

  std::string_view name() const override { return "hierarchical"; }
  Request announce(Route& route) override;
  void learn_counts(Route& route) override;
  std::unique_ptr<RowTransfer> transfer(const Route& route, Direction direction, Unit unit,
                                        const RowFormat& format) override;
  // What is left of the shared memory behind the space where rows land.
  std::span<std::byte> memory() override { return memory_.space().subspan(2 * landing_bytes_); }

  const HostMap& map() const { return map_; }
  HostMemory& host_memory() { return memory_; }
  size_t need_words() const { return need_words_; }
  // Shared memory for `bytes` of landing rows of one epoch; empty when there is not as much.
  std::span<std::byte> landing_space(uint64_t epoch, size_t bytes) const;

  // Kinds of notices, which are also the tags of messages on the host.
  enum Kind : size_t { kOwnRows, kLandedRows, kSums, kSlots };
  // Tags of messages between hosts.
  enum Tag : int { kRowsTag = 16, kNeedsTag, kSumsTag };

 protected:
  int64_t extra_for(const Route& route, int peer) const override;

 private:
  HostMap map_;
  size_t need_words_;
  Communicator host_;
  size_t landing_bytes_;  // of one epoch
  HostMemory memory_;
};

std::unique_ptr<RowTransfer> make_host_dispatch(HierarchicalExchange& exchange, const Route& route,
                                                const RowFormat& format);
std::unique_ptr<RowTransfer> make_host_sums(HierarchicalExchange& exchange, const Route& route,
                                            const RowFormat& format);
std::unique_ptr<RowTransfer> make_host_slots(HierarchicalExchange& exchange, const Route& route,
                                             const RowFormat& format);

}  // namespace cadre
