// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/devices.hpp"

#include <map>
#include <span>
#include <utility>

#include "comm/device/nccl.hpp"
#include "comm/device/staged.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/mpi.hpp"
#include "layers/kernels/gpu/cuda.hpp"
#include "runtime/observe/process_memory.hpp"
#include "runtime/parallel/products.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {
namespace {

constexpr char kDevicesHint[] = "compute.device=cpu needs none; cadre doctor says what there is";

// Through memory of the host where the transport takes no other.
Communicator staged(Communicator world, int device) {
  if (world.transport().name() == "mpi" && mpi_reaches_devices()) return world;
  return {make_staged_transport(world.transport().split(0, world.rank()), make_cuda_copies(device)), world.name()};
}

}  // namespace

std::vector<DeviceSeat> take_device_seats(const Communicator& world) {
  const Topology topology = discover_topology(world);
  const CudaDevices devices = find_cuda_devices();
  DeviceSeat mine;
  mine.num_devices = static_cast<int>(devices.list.size());
  if (mine.num_devices > 0) {
    mine.device = topology.local_rank[static_cast<size_t>(world.rank())] % mine.num_devices;
    const CudaDevice& device = devices.list[static_cast<size_t>(mine.device)];
    mine.bytes = static_cast<int64_t>(device.bytes);
    device.name.copy(mine.name.data(), mine.name.size() - 1);
  }
  std::vector<DeviceSeat> seats = wait(world.all_gather(mine));
  if (mine.device < 0) {
    throw Error(ErrorKind::environment, fmt::format("compute.device = cuda: {}", devices.why_none), kDevicesHint);
  }
  for (int rank = 0; rank < world.size(); ++rank) {
    if (seats[static_cast<size_t>(rank)].device >= 0) continue;
    throw Error(ErrorKind::environment, fmt::format("compute.device = cuda: rank {} has no CUDA device", rank),
                kDevicesHint);
  }
  return seats;
}

std::string why_no_nccl(const Topology& topology, const std::vector<DeviceSeat>& seats) {
  std::map<std::pair<int, int>, int> taken;  // (host, device): rank
  for (int rank = 0; rank < topology.num_ranks(); ++rank) {
    const int host = topology.host_of_rank[static_cast<size_t>(rank)];
    const int device = seats[static_cast<size_t>(rank)].device;
    const auto [seat, is_free] = taken.try_emplace({host, device}, rank);
    if (!is_free) {
      return fmt::format("ranks {} and {} share cuda:{} of {}", seat->second, rank, device,
                         topology.host_names[static_cast<size_t>(host)]);
    }
  }
  return nccl_version().empty() ? "this build has no NCCL" : "";
}

Communicator over_devices(Communicator world, const ComputeConfig& compute, const ExchangeConfig& exchange) {
  if (compute.device == "cpu") {
    CADRE_CHECK(exchange.transport != "nccl", "exchange.transport = nccl with compute.device = cpu",
                "NCCL moves rows between GPUs; use compute.device=cuda, or exchange.transport=mpi");
    return world;
  }
  const std::vector<DeviceSeat> seats = take_device_seats(world);
  const int device = seats[static_cast<size_t>(world.rank())].device;
  if (exchange.transport == "mpi") return staged(std::move(world), device);
  const std::string why_not =
      world.transport().name() == "mpi" ? why_no_nccl(discover_topology(world), seats) : "ranks are threads";
  if (why_not.empty()) {
    return {make_nccl_transport(world.transport().split(0, world.rank()), device), world.name()};
  }
  if (exchange.transport == "nccl") {
    throw Error(ErrorKind::environment, fmt::format("exchange.transport = nccl: {}", why_not),
                "exchange.transport=auto takes MPI then");
  }
  return staged(std::move(world), device);
}

std::unique_ptr<Kernels> make_kernels(const Communicator& world, const ComputeConfig& config, RowBits bits) {
  if (config.device == "cpu") {
    ThreadPool& threads = world.job().threads();
    threads.resize(static_cast<int>(config.threads));
    const ProductChoice products = agree_on_products(world, config.products);
    return make_cpu_kernels(precision_of(config),
                            {.bits = config.row_bits == "independent" ? RowBits::everywhere : bits,
                             .threads = &threads,
                             .products = products,
                             .weights = weight_format(config)});
  }
  const std::vector<DeviceSeat> seats = take_device_seats(world);
  return make_cuda_kernels(seats[static_cast<size_t>(world.rank())].device, precision_of(config));
}

void check_device_memory(const Topology& topology, const std::vector<DeviceSeat>& seats, int rank,
                         size_t planned_bytes) {
  const DeviceSeat& mine = seats[static_cast<size_t>(rank)];
  const int host = topology.host_of_rank[static_cast<size_t>(rank)];
  size_t num_sharing = 0;
  for (size_t other = 0; other < seats.size(); ++other) {
    if (topology.host_of_rank[other] == host && seats[other].device == mine.device) ++num_sharing;
  }
  CADRE_CHECK(planned_bytes * num_sharing <= static_cast<size_t>(mine.bytes),
              fmt::format("{} ranks on cuda:{} of {} want {:.0f} MiB each, the device has {:.0f} MiB", num_sharing,
                          mine.device, topology.host_names[static_cast<size_t>(host)],
                          static_cast<double>(planned_bytes) / kMiB, static_cast<double>(mine.bytes) / kMiB),
              "lower train.batch, raise train.micro_batches, or use more devices");
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
