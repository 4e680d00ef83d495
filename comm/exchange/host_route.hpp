// SPDX-License-Identifier: Apache-2.0
// The part of a route between hosts. A row goes to another host once, to one rank there, its landing rank, and is read
// from there by all ranks of that host that need it. Rank i of a host lands on rank i mod n of another, so that all
// ranks carry traffic. Example: 2 hosts, 2 ranks each; a row of rank 1 (host 0) for ranks 2 and 3 (host 1) lands on 3.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/exchange/plan.hpp"
#include "comm/group/topology.hpp"

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

// What a rank knows of the rows between hosts: those it sends, and those that land on it.
struct HostRoute {
  HostRows out;
  bool needs_sent = false;
  std::vector<int64_t> landing_counts, landing_offsets;  // by landing source
  std::vector<uint64_t> landing_needs;                   // [landing rows, words]; with the first rows
};

}  // namespace cadre
