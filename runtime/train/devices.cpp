// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/devices.hpp"

#include <map>
#include <span>

#include "comm/transport/wait.hpp"
#include "layers/kernels/cuda.hpp"
#include "runtime/train/worker.hpp"

namespace cadre {
namespace {

constexpr char kHint[] = "compute.device=cpu needs none; cadre doctor says what there is";

}  // namespace

std::vector<DeviceSeat> take_device_seats(const Communicator& world) {
  const Topology topology = discover_topology(world);
  const CudaDevices devices = find_cuda_devices();
  DeviceSeat mine;
  mine.num_devices = static_cast<int>(devices.list.size());
  if (mine.num_devices > 0) {
    mine.device = topology.local_rank[static_cast<size_t>(world.rank())] % mine.num_devices;
    const std::string& name = devices.list[static_cast<size_t>(mine.device)].name;
    name.copy(mine.name.data(), mine.name.size() - 1);
  }
  std::vector<DeviceSeat> seats(static_cast<size_t>(world.size()));
  Request gathered =
      world.transport().all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(seats)));
  wait(gathered);
  if (mine.device < 0) {
    throw Error(ErrorKind::environment, fmt::format("compute.device = cuda: {}", devices.why_none), kHint);
  }
  for (int rank = 0; rank < world.size(); ++rank) {
    if (seats[static_cast<size_t>(rank)].device >= 0) continue;
    throw Error(ErrorKind::environment, fmt::format("compute.device = cuda: rank {} has no CUDA device", rank), kHint);
  }
  return seats;
}

std::unique_ptr<Kernels> make_kernels(const Communicator& world, const ComputeConfig& config, PackedWeights packed) {
  if (config.device == "cpu") return make_cpu_kernels(precision_of(config), packed);
  const std::vector<DeviceSeat> seats = take_device_seats(world);
  return make_cuda_kernels(seats[static_cast<size_t>(world.rank())].device, precision_of(config));
}

std::vector<std::string> device_lines(const Topology& topology, const std::vector<DeviceSeat>& seats) {
  std::vector<std::string> lines;
  for (int host = 0; host < topology.num_hosts(); ++host) {
    std::map<int, std::string> ranks_on;  // by device
    for (int rank = 0; rank < topology.num_ranks(); ++rank) {
      if (topology.host_of_rank[static_cast<size_t>(rank)] != host) continue;
      ranks_on[seats[static_cast<size_t>(rank)].device] += fmt::format(" {}", rank);
    }
    std::string line;
    int num_devices = 0;
    for (const auto& [device, ranks] : ranks_on) {
      const auto first = static_cast<size_t>(std::stoi(ranks));
      num_devices = seats[first].num_devices;
      line +=
          fmt::format("{}ranks{} on cuda:{} ({})", line.empty() ? "" : ", ", ranks, device, seats[first].name.data());
    }
    if (const int ranks = topology.ranks_on_host(host); ranks > num_devices) {
      line += fmt::format("; devices {}, fewer than ranks {}: they take turns", num_devices, ranks);
    }
    lines.push_back(fmt::format("{}: {}", topology.host_names[static_cast<size_t>(host)], line));
  }
  return lines;
}

}  // namespace cadre
