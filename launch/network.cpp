// SPDX-License-Identifier: Apache-2.0
#include "launch/network.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string_view>

#include "comm/base/median.hpp"
#include "comm/job/wait.hpp"

namespace cadre {
namespace {

constexpr size_t kSmallBytes = 8;
constexpr size_t kLargeBytes = size_t{4} << 20;
constexpr int kSmallRounds = 200;
constexpr int kLargeRounds = 12;
constexpr int kTag = 0;

void add_once(std::vector<std::string>& names, std::string name) {
  if (std::ranges::find(names, name) == names.end()) names.push_back(std::move(name));
}

// "ob1" of ".../mca_pml_ob1.so"; empty where the line names no such component.
std::string component_in(std::string_view line, std::string_view framework) {
  const std::string begin = fmt::format("/mca_{}_", framework);
  const size_t at = line.rfind(begin);
  const size_t end = line.rfind(".so");
  if (at == std::string_view::npos || end == std::string_view::npos || end < at + begin.size()) return "";
  return std::string(line.substr(at + begin.size(), end - at - begin.size()));
}

std::string_view adapter_names(const Adapters& adapters) { return adapters.names.data(); }

// Seconds of the rounds of one size; the two ranks only.
std::vector<double> round_trips(const Communicator& world, int first, int second, size_t bytes, int rounds) {
  const auto memory = std::make_shared<std::vector<std::byte>>(bytes);
  const bool leads = world.rank() == first;
  const int peer = leads ? second : first;
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    for (const bool sends : {leads, !leads}) {
      Request request = sends ? world.send(std::span<const std::byte>(*memory), memory, peer, kTag)
                              : world.receive(std::span<std::byte>(*memory), memory, peer, kTag);
      wait(request);
    }
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return seconds;
}

LinkSpeed measure_link(const Communicator& world, int first, int second) {
  round_trips(world, first, second, kSmallBytes, kSmallRounds / 10);  // connects
  const double small = median_of(round_trips(world, first, second, kSmallBytes, kSmallRounds));
  const double large = median_of(round_trips(world, first, second, kLargeBytes, kLargeRounds));
  return {first, second, 0.5e6 * small, 2.0 * static_cast<double>(kLargeBytes) / large};
}

// Ranks that rank 0 measures with.
std::vector<int> partners_of(const Topology& topology, int most_hosts) {
  std::vector<int> partners;
  std::vector<bool> seen(static_cast<size_t>(topology.num_hosts()), false);
  bool has_neighbour = false;
  for (int rank = 1; rank < topology.num_ranks(); ++rank) {
    const int host = topology.host_of_rank[static_cast<size_t>(rank)];
    const bool is_own = host == topology.host_of_rank[0];
    if (is_own ? has_neighbour : seen[static_cast<size_t>(host)]) continue;
    if (is_own) has_neighbour = true;
    seen[static_cast<size_t>(host)] = true;
    if (static_cast<int>(partners.size()) < most_hosts) partners.push_back(rank);
  }
  return partners;
}

}  // namespace

MpiComponents loaded_components(std::istream& maps) {
  MpiComponents components;
  for (std::string line; std::getline(maps, line);) {
    if (std::string name = component_in(line, "pml"); !name.empty() && name != "monitoring") components.pml = name;
    if (std::string name = component_in(line, "btl"); !name.empty()) add_once(components.btls, name);
    if (std::string name = component_in(line, "mtl"); !name.empty()) add_once(components.mtls, name);
  }
  return components;
}

MpiComponents loaded_components() {
  std::ifstream maps("/proc/self/maps");
  return loaded_components(maps);
}

Adapters find_adapters() {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/sys/class/infiniband", error), end; !error && entry != end;
       entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::ranges::sort(names);
  Adapters adapters;
  fmt::format("{}", fmt::join(names, " ")).copy(adapters.names.data(), adapters.names.size() - 1);
  return adapters;
}

std::vector<Adapters> gather_adapters(const Communicator& world) { return wait(world.all_gather(find_adapters())); }

std::string network_text(const MpiComponents& components, const std::vector<Adapters>& adapters) {
  if (components.pml.empty()) return "";
  std::string text = "pml " + components.pml;
  if (components.pml == "ob1") text += fmt::format(", btl {}", fmt::join(components.btls, " "));
  if (components.pml == "cm") text += fmt::format(", mtl {}", fmt::join(components.mtls, " "));
  std::vector<std::string> fabrics;
  for (const Adapters& one : adapters) {
    if (!adapter_names(one).empty()) add_once(fabrics, std::string(adapter_names(one)));
  }
  return text + fmt::format("; fabric {}",
                            fabrics.empty() ? "none: no RDMA adapter" : fmt::format("{}", fmt::join(fabrics, ", ")));
}

std::string tcp_warning(const MpiComponents& components, const std::vector<Adapters>& adapters, int num_hosts) {
  const auto has = [](const std::vector<std::string>& names, const char* name) {
    return std::ranges::find(names, name) != names.end();
  };
  const bool is_tcp = components.pml == "ob1" && has(components.btls, "tcp") && !has(components.btls, "openib");
  const auto adapter = std::ranges::find_if(adapters, [](const Adapters& one) { return !adapter_names(one).empty(); });
  if (num_hosts < 2 || !is_tcp || adapter == adapters.end()) return "";
  return fmt::format(
      "rows between hosts travel over TCP although there is an RDMA adapter ({}): use OMPI_MCA_pml=ucx, as "
      "launch/mpirun/ucx.sh does",
      adapter_names(*adapter));
}

std::vector<LinkSpeed> measure_links(const Communicator& world, const Topology& topology, int most_hosts) {
  std::vector<LinkSpeed> links;
  for (const int partner : partners_of(topology, most_hosts)) {
    if (world.rank() == 0 || world.rank() == partner) links.push_back(measure_link(world, 0, partner));
    Request all_measured = world.barrier();
    wait(all_measured);
  }
  return links;
}

}  // namespace cadre
