// SPDX-License-Identifier: Apache-2.0
#include "comm/group/topology.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>

#include "comm/base/check.hpp"
#include "comm/transport/wait.hpp"

namespace cadre {

int Topology::ranks_on_host(int host) const {
  return static_cast<int>(std::count(host_of_rank.begin(), host_of_rank.end(), host));
}

Topology Topology::uniform(int num_hosts, int ranks_per_host) {
  CADRE_CHECK(num_hosts >= 1 && ranks_per_host >= 1,
              fmt::format("a topology of {} hosts with {} ranks each", num_hosts, ranks_per_host));
  std::vector<std::string> names;
  for (int rank = 0; rank < num_hosts * ranks_per_host; ++rank) {
    names.push_back(fmt::format("host{}", rank / ranks_per_host));
  }
  return from_host_names(names);
}

Topology Topology::from_host_names(const std::vector<std::string>& name_of_rank) {
  Topology topology;
  std::vector<int> ranks_seen;
  for (const std::string& name : name_of_rank) {
    auto found = std::find(topology.host_names.begin(), topology.host_names.end(), name);
    if (found == topology.host_names.end()) {
      found = topology.host_names.insert(found, name);
      ranks_seen.push_back(0);
    }
    const auto host = static_cast<size_t>(found - topology.host_names.begin());
    topology.host_of_rank.push_back(static_cast<int>(host));
    topology.local_rank.push_back(ranks_seen[host]++);
  }
  return topology;
}

Topology discover_topology(const Communicator& world) {
  using Name = std::array<char, 256>;
  Name mine{};
  gethostname(mine.data(), mine.size() - 1);
  std::vector<Name> all(static_cast<size_t>(world.size()));
  Request gathered =
      world.transport().all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  wait(gathered);
  std::vector<std::string> names;
  for (const Name& name : all) names.emplace_back(name.data());
  return Topology::from_host_names(names);
}

}  // namespace cadre
