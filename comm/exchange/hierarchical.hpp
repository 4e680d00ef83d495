// SPDX-License-Identifier: Apache-2.0
// The hierarchical strategy. A row goes to another host once, to one rank there, its landing rank, and all ranks of that
// host that need it read it there. Rank i of a host lands on rank i mod n of another, so that all ranks carry traffic.
// Example: 2 hosts, 2 ranks each; a row of rank 1 (host 0) for ranks 2 and 3 (host 1) lands on rank 3. Sums for a token of
// another host are added up at its landing rank and return as one row.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "comm/exchange/host_share.hpp"

namespace cadre {

// Where ranks are, and where their rows land. Pure.
class HostMap {
 public:
  HostMap(const Topology& topology, int rank);

  int num_hosts() const { return static_cast<int>(ranks_of_host_.size()); }
  int host() const { return host_of(rank_); }
  int host_of(int rank) const { return topology_.host_of_rank[rank]; }
  int local_rank_of(int rank) const { return topology_.local_rank[rank]; }
  const std::vector<int>& ranks_of_host(int host) const { return ranks_of_host_[host]; }
  const std::vector<int>& neighbours() const { return ranks_of_host_[host()]; }  // of this host, this rank too
  // Where rows of `source` for `host` land.
  int landing_rank(int source, int host) const;
  // The ranks of other hosts whose rows land here, ascending.
  const std::vector<int>& landing_sources() const { return landing_sources_; }

 private:
  Topology topology_;
  int rank_;
  std::vector<std::vector<int>> ranks_of_host_;
  std::vector<int> landing_sources_;
};

// Which local ranks of a host need a row: bit i for local rank i.
class NeedMask {
 public:
  explicit NeedMask(int num_ranks) : words_((static_cast<size_t>(num_ranks) + 63) / 64) {}
  size_t words() const { return words_; }
  static void set(uint64_t* mask, int local_rank) { mask[local_rank / 64] |= uint64_t{1} << (local_rank % 64); }
  static bool get(const uint64_t* mask, int local_rank) {
    return (mask[local_rank / 64] >> (local_rank % 64) & 1U) != 0;
  }

 private:
  size_t words_;
};

// The rows that one rank sends to other hosts: ordered by (host, token), each once.
struct HostRows {
  std::vector<int64_t> counts, offsets;  // by host; none for the own one
  std::vector<int32_t> token;            // [host rows]
  std::vector<uint64_t> needs;           // [host rows, words]: who needs it there
};
HostRows make_host_rows(const DispatchPlan& plan, const HostMap& map, size_t words);

// The rows between hosts of one plan: those that this rank sends, and those that land on it.
struct HostRoute {
  HostRows out;
  bool needs_sent = false;
  std::vector<int64_t> landing_counts, landing_offsets;  // by landing source
  std::vector<uint64_t> landing_needs;                   // [landing rows, words]; arrive with the first rows
};

class HierarchicalExchange : public GroupExchange {
 public:
  HierarchicalExchange(const ExchangeSetup& setup, int64_t landing_rows);

  std::string_view name() const override { return "hierarchical"; }
  // The shared memory behind the space where rows land.
  std::span<std::byte> memory() override { return memory_.space().subspan(2 * landing_bytes_); }
  std::unique_ptr<Route> route(DispatchPlan plan) override;

  const HostMap& map() const { return map_; }
  HostMemory& host_memory() { return memory_; }
  size_t need_words() const { return need_words_; }
  // Shared memory for `bytes` of landing rows of one epoch; empty when there is too little.
  std::span<std::byte> landing_space(uint64_t epoch, size_t bytes) const;

  // Kinds of notices, which are also the tags of messages on the host.
  enum Kind : size_t { kOwnRows, kLandedRows, kSums, kSlots };
  // Tags of messages between hosts.
  enum Tag : int { kRowsTag = 16, kNeedsTag, kSumsTag };

 private:
  HostMap map_;
  size_t need_words_;
  Communicator host_;
  size_t landing_bytes_;  // of one epoch
  HostMemory memory_;
};

class HierarchicalRoute : public GroupRoute {
 public:
  HierarchicalRoute(HierarchicalExchange& exchange, DispatchPlan plan);

  std::unique_ptr<RowTransfer> transfer(Direction direction, Unit unit, const RowFormat& format) override;

  HierarchicalExchange& hierarchy() const { return hierarchy_; }
  // Shared with the messages under way that carry its masks.
  const std::shared_ptr<HostRoute>& hosts() const { return hosts_; }

 protected:
  int64_t extra_for(int peer) const override;
  void learn_extra(std::vector<int64_t> of_peer) override;

 private:
  HierarchicalExchange& hierarchy_;
  std::shared_ptr<HostRoute> hosts_;
};

// Transfers: rows to experts; sums and slots to tokens.
std::unique_ptr<RowTransfer> make_host_dispatch(const HierarchicalRoute& route, const RowFormat& format);
std::unique_ptr<RowTransfer> make_host_sums(const HierarchicalRoute& route, const RowFormat& format);
std::unique_ptr<RowTransfer> make_host_slots(const HierarchicalRoute& route, const RowFormat& format);

}  // namespace cadre
