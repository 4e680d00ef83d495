// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "comm/group/communicator.hpp"

namespace cadre {

struct BenchExchangeOptions {
  int64_t tokens = 4096;  // of each rank
  int64_t hidden = 2048;
  int experts = 16;
  int top_k = 8;
  std::string strategy = "all";
  std::string wire = "fp32";       // of dispatch; combine is bf16 where that is not fp32
  std::string workload = "W0";     // W0 ... W7 or all
  std::string combine = "partial";
  int64_t hosts = 0;               // 0: as they are; else the ranks play that many hosts
  int64_t iterations = 20;
  int64_t warmup = 3;
  std::string json;
};

// Dispatch and combine with experts that do nothing, for each strategy and workload: beside what is written by hand with
// MPI_Alltoallv, and beside a memcpy of the same bytes. Collective over `world`; rank 0 reports.
void bench_exchange(const Communicator& world, const BenchExchangeOptions& options);

}  // namespace cadre
