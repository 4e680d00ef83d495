// SPDX-License-Identifier: Apache-2.0
#include "launch/binding.hpp"

#include <fmt/format.h>
#include <hwloc.h>

#include <map>
#include <memory>
#include <span>

#include "comm/job/wait.hpp"

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
