// SPDX-License-Identifier: Apache-2.0
// TCP connections between processes of a job that watch each other, beside MPI: the kernel closes those of a process that
// dies, whatever it died of, and a thread can answer on them while MPI is stuck.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "comm/liveness/link.hpp"

namespace cadre {

// A process of the job, as messages name it.
struct Member {
  std::string host;
  int64_t pid = 0;
};

// Collective over the job, by the launcher's own channel: the blocks of all ranks, equally long, in the order of ranks.
using GatherBytes = std::function<std::vector<std::byte>(std::span<const std::byte> mine)>;

struct Neighbourhood {
  std::vector<Member> members;  // by rank
  std::vector<Link> links;      // to the neighbours of watch_neighbours(), in its order; none after a failure
  std::string failure;          // the same on all ranks: of the lowest rank that failed; empty: none
};

// Collective; all ranks get their links, or none does. Takes `seconds` at most. Both ends prove that they belong to the job
// by a secret that only `gather` carries; a connection that says nothing, or something else, delays no other. All addresses
// of a host are tried, IPv4 and IPv6.
Neighbourhood connect_neighbours(int rank, int num_ranks, const GatherBytes& gather, double seconds);

}  // namespace cadre
