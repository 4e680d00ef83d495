// SPDX-License-Identifier: Apache-2.0
// Whether the ranks of a host fit into the memory that they share.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "runtime/observe/process_memory.hpp"

namespace cadre {

// Collective over `world`. `wanted_bytes` is what this rank has and will take. Throws ErrorKind::input on the ranks that share
// a limit which is less than they want together, and names it. Returns a line that says which limit leaves this rank least.
std::string check_host_memory(const Communicator& world, const Topology& topology, size_t wanted_bytes,
                              const std::vector<MemoryLimit>& limits = memory_limits());

}  // namespace cadre
