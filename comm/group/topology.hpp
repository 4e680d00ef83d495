// SPDX-License-Identifier: Apache-2.0
// Which ranks of a group share a host, that is memory: a plain value, found over a communicator or given by hand for planning.
#pragma once

#include <string>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

struct Topology {
  std::vector<int> host_of_rank;  // index into host_names
  std::vector<int> local_rank;    // among the ranks of the same host, in rank order
  std::vector<std::string> host_names;

  int num_ranks() const { return static_cast<int>(host_of_rank.size()); }
  int num_hosts() const { return static_cast<int>(host_names.size()); }
  int ranks_on_host(int host) const;

  // Ranks 0 .. hosts*ranks_per_host - 1, filled host by host.
  static Topology uniform(int num_hosts, int ranks_per_host);
  // Ranks with the same leader share a host.
  static Topology from_leaders(const std::vector<int>& leader_of_rank, const std::vector<std::string>& name_of_rank);

  bool operator==(const Topology&) const = default;
};

// Collective over `group`.
Topology discover_topology(const Communicator& group);

}  // namespace cadre
