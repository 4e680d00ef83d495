// SPDX-License-Identifier: Apache-2.0
#include "launch/banner.hpp"

#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/base/console.hpp"
#include "comm/device/nccl.hpp"
#include "comm/group/topology.hpp"
#include "comm/job/wait.hpp"
#include "comm/liveness/liveness.hpp"
#include "comm/transport/mpi.hpp"
#include "launch/network.hpp"
#include "runtime/parallel/devices.hpp"

namespace cadre {
namespace {

// A note when a host has fewer cores than its ranks want; empty otherwise.
std::string crowding_note(const Topology& topology, const std::vector<Binding>& bindings, int host, int64_t threads) {
  const auto first = std::ranges::find(topology.host_of_rank, host) - topology.host_of_rank.begin();
  const int num_cores = bindings[static_cast<size_t>(first)].num_cores;
  const int num_ranks = topology.ranks_on_host(host);
  if (num_cores <= 0 || num_ranks * threads <= num_cores) return "";
  return fmt::format("  note      {}: cores {} < ranks {} x threads {}: ranks share cores\n",
                     topology.host_names[static_cast<size_t>(host)], num_cores, num_ranks, threads);
}

// "4", or "2-4" when hosts differ.
std::string ranks_a_host(const Topology& topology) {
  std::vector<int> counts;
  for (int host = 0; host < topology.num_hosts(); ++host) counts.push_back(topology.ranks_on_host(host));
  const auto [least, most] = std::ranges::minmax(counts);
  return least == most ? fmt::format("{}", most) : fmt::format("{}-{}", least, most);
}

std::string transport_text(const Communicator& world) {
  if (world.transport().name() != "mpi") return world.size() == 1 ? "one process" : "threads of one process";
  return fmt::format("{}, thread level {}", mpi_library_version(), mpi_thread_level());
}

// Without connections a dead or stopped rank shows only when a wait passes its deadline.
std::string liveness_text(const Communicator& world) {
  const Liveness* const liveness = world.job().liveness();
  if (liveness == nullptr || world.size() == 1) return "";
  if (liveness->failure().empty())
    return fmt::format("  liveness  {} connections a rank\n", liveness->num_connections());
  return fmt::format("  liveness  none: {}; only the deadline detects ranks that die\n", liveness->failure());
}

}  // namespace

void print_banner(const Communicator& world, const RunConfig& config) {
  const Topology topology = discover_topology(world);
  const std::vector<Binding> bindings = gather_bindings(world);
  std::vector<DeviceSeat> seats;
  if (config.compute.device != "cpu") seats = take_device_seats(world);
  const std::vector<Adapters> adapters = gather_adapters(world);
  if (world.rank() != 0) return;

  const Grid grid =
      Grid::make(world.size(), static_cast<int>(config.parallel.pipeline), static_cast<int>(config.parallel.expert));
  std::string text = fmt::format("cadre {} | ranks {} | hosts {} | ranks a host {} | grid {}\n", CADRE_VERSION,
                                 world.size(), topology.num_hosts(), ranks_a_host(topology), grid.describe());
  text += fmt::format("  transport {}\n", transport_text(world));
  const MpiComponents components = world.transport().name() == "mpi" ? loaded_components() : MpiComponents();
  if (const std::string network = network_text(components, adapters); !network.empty()) {
    text += fmt::format("  network   {}\n", network);
  }
  text += fmt::format("  exchange  {}, combine {}, balance {}, deadline {} s\n", config.exchange.strategy,
                      config.exchange.combine, config.exchange.balance, config.exchange.deadline_s);
  text += liveness_text(world);
  text += fmt::format("  compute   {}{}, row bits {}, threads a rank {}\n",
                      seats.empty() ? "" : config.compute.device + ", ", config.compute.precision,
                      config.compute.row_bits, config.compute.threads);
  if (!seats.empty()) {
    for (const std::string& line : device_lines(topology, seats)) text += fmt::format("  device    {}\n", line);
    const std::string why_not =
        config.exchange.transport == "mpi" ? "set by the configuration" : why_no_nccl(topology, seats);
    text += fmt::format("  rows      over {}\n", why_not.empty() ? nccl_version() : "MPI and the host: " + why_not);
  }
  for (int host = 0; host < topology.num_hosts(); ++host) text += host_line(topology, bindings, host);
  for (int host = 0; host < topology.num_hosts(); ++host) {
    text += crowding_note(topology, bindings, host, config.compute.threads);
  }
  say(text);
  const std::string warning = tcp_warning(components, adapters, topology.num_hosts());
  if (!warning.empty()) say(fmt::format("warning: {}\n", warning));
}

namespace {

struct DestroyTopology {
  void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
};
struct FreeBitmap {
  void operator()(hwloc_bitmap_t bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

// "0-3,8"
std::string list_text(const Bitmap& bitmap) {
  std::array<char, 256> text{};
  hwloc_bitmap_list_snprintf(text.data(), text.size(), bitmap.get());
  return text.data();
}

Binding find_binding() {
  Binding binding;
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return binding;
  const std::unique_ptr<hwloc_topology, DestroyTopology> topology(raw);
  const Bitmap cpus(hwloc_bitmap_alloc());
  if (hwloc_topology_load(raw) != 0 || hwloc_get_cpubind(raw, cpus.get(), HWLOC_CPUBIND_PROCESS) != 0) return binding;
  binding.num_cores = hwloc_get_nbobjs_by_type(raw, HWLOC_OBJ_CORE);
  list_text(cpus).copy(binding.cpus.data(), binding.cpus.size() - 1);
  return binding;
}

}  // namespace

std::vector<Binding> gather_bindings(const Communicator& world) { return wait(world.all_gather(find_binding())); }

// The ranks of one host, by the cpus they may use.
std::string host_line(const Topology& topology, const std::vector<Binding>& bindings, int host) {
  std::map<std::string, Bitmap> ranks_on;
  for (int rank = 0; rank < topology.num_ranks(); ++rank) {
    if (topology.host_of_rank[static_cast<size_t>(rank)] != host) continue;
    Bitmap& ranks = ranks_on[bindings[static_cast<size_t>(rank)].cpus.data()];
    if (ranks == nullptr) ranks.reset(hwloc_bitmap_alloc());
    hwloc_bitmap_set(ranks.get(), static_cast<unsigned>(rank));
  }
  std::string text;
  for (const auto& [cpus, ranks] : ranks_on) {
    text += fmt::format("{}ranks {} on cpus {}", text.empty() ? "" : "; ", list_text(ranks), cpus);
  }
  return fmt::format("  {:<10}{}\n", topology.host_names[static_cast<size_t>(host)], text);
}

}  // namespace cadre
