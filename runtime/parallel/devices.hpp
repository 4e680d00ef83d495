// SPDX-License-Identifier: Apache-2.0
// What each rank computes with: the ranks of a host take its CUDA devices in turn; on CPUs, which library multiplies.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/kernels/product_choice.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// The seat of one rank; travels between ranks as bytes.
struct DeviceSeat {
  int device = -1;               // the host's number of it
  int num_devices = 0;           // of its host, that this job may use
  int64_t bytes = 0;             // of its memory
  std::array<char, 112> name{};  // "NVIDIA H100 80GB HBM3"
};

// [ranks]. Collective over `world`. Throws ErrorKind::environment, on all ranks, where some rank has no device.
std::vector<DeviceSeat> take_device_seats(const Communicator& world);

// Why these ranks cannot use NCCL: the build, or two of them with one device. Empty where they can.
std::string why_no_nccl(const Topology& topology, const std::vector<DeviceSeat>& seats);

// The same ranks over NCCL, where they compute on devices, can use it and exchange.transport lets them; else `world`.
// Collective. Throws where the configuration insists on NCCL in vain.
Communicator over_devices(Communicator world, const ComputeConfig& compute, const ExchangeConfig& exchange);

// The back end that the configuration asks for, on the device of this rank. Collective over `world`.
std::unique_ptr<Kernels> make_kernels(const Communicator& world, const ComputeConfig& config, RowBits bits);

// Throws where `planned_bytes` of each rank on the device of this one, with all that share it, are more than it has.
void check_device_memory(const Topology& topology, const std::vector<DeviceSeat>& seats, int rank,
                         size_t planned_bytes);

// "host a: ranks 0 2 on cuda:0 (NAME), ranks 1 3 on cuda:1 (NAME)", a line for each host.
std::vector<std::string> device_lines(const Topology& topology, const std::vector<DeviceSeat>& seats);

// Which library multiplies in a job on CPUs: measured once for a machine, the same on all ranks, and kept with a run, so that a
// resume and the same command again give the same bits.

// cadre/ in $XDG_CACHE_HOME or ~/.cache; empty where neither is set.
std::filesystem::path product_cache();

// What `cache` has for this machine; else measured, and written there where that can be. Of processes that measure at the same
// time the first to write prevails. `anew` measures in any case, and overwrites.
ProductChoice choose_products(const std::filesystem::path& cache, bool anew = false);

// compute.products; for "auto" the choice of rank 0. Collective over `world`.
ProductChoice agree_on_products(const Communicator& world, const std::string& products);

// The name of a choice on all ranks: `products` of rank 0, measured there where it is "auto". Collective over `world`.
std::string products_of_rank_0(const Communicator& world, const std::string& products);

// Empty, or a line on a rank whose CPU or libraries differ from those of rank 0, which chose `products`. Collective over `world`.
std::string note_on_machines(const Communicator& world, const std::string& products);

}  // namespace cadre
