// SPDX-License-Identifier: Apache-2.0
#include "comm/group/topology.hpp"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "comm/base/check.hpp"
#include "comm/base/host_name.hpp"
#include "comm/job/wait.hpp"

namespace cadre {

int Topology::ranks_on_host(int host) const {
  return static_cast<int>(std::count(host_of_rank.begin(), host_of_rank.end(), host));
}

Topology Topology::uniform(int num_hosts, int ranks_per_host) {
  CADRE_CHECK(num_hosts >= 1 && ranks_per_host >= 1,
              fmt::format("a topology of {} hosts with {} ranks each", num_hosts, ranks_per_host));
  std::vector<int> leaders;
  std::vector<std::string> names;
  for (int rank = 0; rank < num_hosts * ranks_per_host; ++rank) {
    leaders.push_back(rank - rank % ranks_per_host);
    names.push_back(fmt::format("host{}", rank / ranks_per_host));
  }
  return from_leaders(leaders, names);
}

Topology Topology::from_leaders(const std::vector<int>& leader_of_rank, const std::vector<std::string>& name_of_rank) {
  Topology topology;
  std::unordered_map<int, int> host_of_leader;
  std::vector<int> ranks_seen;
  for (size_t rank = 0; rank < leader_of_rank.size(); ++rank) {
    const auto [found, is_new] = host_of_leader.try_emplace(leader_of_rank[rank], topology.num_hosts());
    if (is_new) {
      topology.host_names.push_back(name_of_rank[rank]);
      ranks_seen.push_back(0);
    }
    topology.host_of_rank.push_back(found->second);
    topology.local_rank.push_back(ranks_seen[static_cast<size_t>(found->second)]++);
  }
  return topology;
}

Topology discover_topology(const Communicator& group) {
  struct Place {
    int32_t leader = 0;
    std::array<char, 252> name{};
  };
  Request all_here = group.barrier();  // host_leader itself cannot tell who is late
  wait(all_here);
  Place mine;
  mine.leader = group.transport().host_leader();
  host_name().copy(mine.name.data(), mine.name.size() - 1);
  std::vector<int> leaders;
  std::vector<std::string> names;
  for (const Place& place : wait(group.all_gather(mine))) {
    leaders.push_back(place.leader);
    names.emplace_back(place.name.data());
  }
  return Topology::from_leaders(leaders, names);
}

Grid Grid::make(int num_ranks, int pipeline, int expert) {
  CADRE_CHECK(pipeline >= 1 && num_ranks >= 1 && num_ranks % pipeline == 0,
              fmt::format("parallel.pipeline = {} does not divide the {} ranks of this job", pipeline, num_ranks),
              "choose a divisor of the number of ranks");
  const int data = num_ranks / pipeline;
  const int expert_size = expert == 0 ? data : expert;
  CADRE_CHECK(expert_size >= 1 && expert_size <= data && data % expert_size == 0,
              fmt::format("parallel.expert = {} does not divide the {} data-parallel ranks of this job", expert, data),
              "choose a divisor of that number, or 0 for all of them");
  return {pipeline, data, expert_size};
}

std::string Grid::describe() const {
  const std::string stages = pipeline > 1 ? fmt::format("pipeline {} x ", pipeline) : "";
  return stages + fmt::format("data {} x expert {}", data, expert);
}

}  // namespace cadre
