// SPDX-License-Identifier: Apache-2.0
// The first lines of a run: ranks, hosts, transport, cpus of each rank.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// Printed by rank 0. Collective over `world`.
void print_banner(const Communicator& world, const RunConfig& config);

// Where the process of a rank may run; travels between ranks as bytes.
struct Binding {
  int num_cores = 0;             // of the host, that this job may use; 0 when unknown
  std::array<char, 124> cpus{};  // "0-3,8"
};

// [ranks]. Collective over `world`.
std::vector<Binding> gather_bindings(const Communicator& world);

// The ranks of one host, by the cpus they may use.
std::string host_line(const Topology& topology, const std::vector<Binding>& bindings, int host);

}  // namespace cadre
