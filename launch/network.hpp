// SPDX-License-Identifier: Apache-2.0
// What carries messages between ranks: the components that Open MPI chose, the adapters of each host, and what a message
// takes between hosts.
#pragma once

#include <array>
#include <istream>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"

namespace cadre {

// Open MPI unloads what it does not choose, so the libraries of a process name the choice. Empty with another MPI.
struct MpiComponents {
  std::string pml;                // ob1, ucx, cm
  std::vector<std::string> btls;  // of ob1: self, vader, tcp
  std::vector<std::string> mtls;  // of cm: ofi, psm2
};
// `maps`: /proc/self/maps.
MpiComponents loaded_components(std::istream& maps);
MpiComponents loaded_components();

// The RDMA adapters of a host, such as "mlx5_0 mlx5_1"; travels between ranks as bytes.
struct Adapters {
  std::array<char, 128> names{};
};
Adapters find_adapters();
// [ranks]. Collective over `world`.
std::vector<Adapters> gather_adapters(const Communicator& world);

// "pml ob1, btl self vader tcp; fabric mlx5_0", or "" where nothing is known.
std::string network_text(const MpiComponents& components, const std::vector<Adapters>& adapters);

// Whether messages between hosts travel over TCP though a host has an RDMA adapter: a warning with the repair; else empty.
std::string tcp_warning(const MpiComponents& components, const std::vector<Adapters>& adapters, int num_hosts);

// What a message takes between two ranks.
struct LinkSpeed {
  int first = 0;
  int second = 0;
  double latency_us = 0.0;        // half of a round trip of 8 bytes, median
  double bytes_per_second = 0.0;  // of 4 MiB, median
};

// Rank 0 with the first rank of every other host, and with another rank of its own host; at most `most_hosts` of them.
// Collective over `world`; on rank 0 the result.
std::vector<LinkSpeed> measure_links(const Communicator& world, const Topology& topology, int most_hosts);

}  // namespace cadre
