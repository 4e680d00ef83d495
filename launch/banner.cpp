// SPDX-License-Identifier: Apache-2.0
#include "launch/banner.hpp"

#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/group/grid.hpp"
#include "comm/group/topology.hpp"
#include "comm/transport/mpi.hpp"
#include "comm/transport/wait.hpp"

namespace cadre {
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

// Where the process of a rank may run; travels between ranks as bytes.
struct Binding {
  int num_cores = 0;  // of the host, that this job may use
  std::array<char, 124> cpus{};
};

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

std::vector<Binding> gather_bindings(const Communicator& world) {
  const Binding mine = find_binding();
  std::vector<Binding> all(static_cast<size_t>(world.size()));
  Request gathered =
      world.transport().all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  wait(gathered);
  return all;
}

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

// A note when a host has fewer cores than its ranks want; empty otherwise.
std::string crowding_note(const Topology& topology, const std::vector<Binding>& bindings, int host, int64_t threads) {
  const auto first = std::ranges::find(topology.host_of_rank, host) - topology.host_of_rank.begin();
  const int num_cores = bindings[static_cast<size_t>(first)].num_cores;
  const int num_ranks = topology.ranks_on_host(host);
  if (num_cores <= 0 || num_ranks * threads <= num_cores) return "";
  return fmt::format("  note      {}: cores {}, fewer than ranks {} x threads {}: they take turns\n",
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
  if (world.transport().name() != "mpi") return "threads of one process";
  return fmt::format("{}, thread level {}", mpi_library_version(), mpi_thread_level());
}

}  // namespace

void print_banner(const Communicator& world, const RunConfig& config) {
  const Topology topology = discover_topology(world);
  const std::vector<Binding> bindings = gather_bindings(world);
  if (world.rank() != 0) return;

  const Grid grid =
      Grid::make(world.size(), static_cast<int>(config.parallel.pipeline), static_cast<int>(config.parallel.expert));
  std::string text = fmt::format("cadre {} | ranks {} | hosts {} | ranks a host {} | grid {}\n", CADRE_VERSION,
                                 world.size(), topology.num_hosts(), ranks_a_host(topology), grid.describe());
  text += fmt::format("  transport {}\n", transport_text(world));
  text += fmt::format("  exchange  {}, combine {}, deadline {} s\n", config.exchange.strategy, config.exchange.combine,
                      config.exchange.deadline_s);
  text += fmt::format("  compute   {}, threads a rank {}\n", config.compute.precision, config.compute.threads);
  for (int host = 0; host < topology.num_hosts(); ++host) text += host_line(topology, bindings, host);
  for (int host = 0; host < topology.num_hosts(); ++host) {
    text += crowding_note(topology, bindings, host, config.compute.threads);
  }
  fmt::print("{}", text);
  std::fflush(stdout);
}

}  // namespace cadre
