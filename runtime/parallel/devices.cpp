// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/devices.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/device/nccl.hpp"
#include "comm/device/staged.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/mpi.hpp"
#include "layers/kernels/gpu/cuda.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/observe/process.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {
namespace {

constexpr char kDevicesHint[] = "compute.device=cpu needs none; cadre doctor says what there is";

// Through memory of the host where the transport takes no other.
Communicator staged(Communicator world, int device) {
  if (world.transport().name() == "mpi" && mpi_reaches_devices()) return world;
  return {make_staged_transport(world.transport().split(0, world.rank()), make_cuda_copies(device)), world.name()};
}

namespace fs = std::filesystem;

constexpr char kKey[] = "compute.products";
constexpr char kAuto[] = "auto";

// Two lines: the machine and the choice. None where the file is missing or of another machine.
std::optional<ProductChoice> read_choice(const fs::path& path, const std::string& machine) {
  std::ifstream file(path);
  std::string found;
  std::string choice;
  if (!std::getline(file, found) || !std::getline(file, choice) || found != machine) return std::nullopt;
  try {
    return ProductChoice::parse(choice, path.string());
  } catch (const Error&) {  // written by another version
    return std::nullopt;
  }
}

// Whole or not at all; a file that is there stays, unless it is to be overwritten.
void write_choice(const fs::path& path, const std::string& machine, const ProductChoice& choice, bool overwrites) {
  std::error_code ignored;  // a cache that cannot be written is measured again
  fs::create_directories(path.parent_path(), ignored);
  const fs::path part = fmt::format("{}.{}", path.string(), ::getpid());
  std::ofstream(part) << machine << '\n' << choice.text() << '\n';
  if (overwrites) {
    fs::rename(part, path, ignored);
  } else {
    fs::create_hard_link(part, path, ignored);
  }
  fs::remove(part, ignored);
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

fs::path product_cache() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/')
    return fs::path(cache) / "cadre";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return fs::path(home) / ".cache" / "cadre";
  return {};
}

ProductChoice choose_products(const fs::path& cache, bool anew) {
  if (cache.empty()) return measure_products();
  const std::string machine = product_machine();
  const fs::path path = cache / fmt::format("products-{}.txt", hex(digest_of(machine).xxh64));
  if (!anew) {
    if (const auto known = read_choice(path, machine)) return *known;
  }
  const ProductChoice measured = measure_products();
  write_choice(path, machine, measured, anew);
  return read_choice(path, machine).value_or(measured);
}

std::string products_of_rank_0(const Communicator& world, const std::string& products) {
  std::vector<char> text(64);
  if (world.rank() == 0) {
    (products == kAuto ? choose_products(product_cache()).text() : products).copy(text.data(), text.size() - 1);
  }
  return wait(world.broadcast(std::move(text), 0)).data();
}

ProductChoice agree_on_products(const Communicator& world, const std::string& products) {
  return ProductChoice::parse(products == kAuto ? products_of_rank_0(world, kAuto) : products, kKey);
}

std::string note_on_machines(const Communicator& world, const std::string& products) {
  const uint64_t mine = digest_of(product_machine()).xxh64;
  const std::vector<uint64_t> machines = wait(world.all_gather(mine));
  const auto other = std::ranges::find_if(machines, [&](uint64_t machine) { return machine != machines.front(); });
  if (other == machines.end()) return {};
  return fmt::format(
      "note: rank {} has another CPU or other libraries than rank 0, whose choice of products ({}) all ranks use\n",
      other - machines.begin(), products);
}

}  // namespace cadre
