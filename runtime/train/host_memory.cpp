// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/host_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"

namespace cadre {
namespace {

constexpr size_t kMostLimits = 16;  // the innermost ones: nested deeper than that are no control groups

struct Demand {
  uint64_t bytes = 0;
  std::array<uint64_t, kMostLimits> limits = {};  // by id; 0: none
};

std::vector<Demand> gather_demands(const Communicator& world, size_t wanted_bytes,
                                   const std::vector<MemoryLimit>& limits) {
  Demand mine;
  mine.bytes = wanted_bytes;
  for (size_t i = 0; i < std::min(limits.size(), kMostLimits); ++i) mine.limits[i] = limits[i].id;
  return wait(world.all_gather(mine));
}

}  // namespace

std::string check_host_memory(const Communicator& world, const Topology& topology, size_t wanted_bytes,
                              const std::vector<MemoryLimit>& limits) {
  const std::vector<Demand> demands = gather_demands(world, wanted_bytes, limits);
  const int host = topology.host_of_rank[static_cast<size_t>(world.rank())];
  double largest_share = -1.0;
  std::string line;
  for (size_t i = 0; i < std::min(limits.size(), kMostLimits); ++i) {
    const MemoryLimit& limit = limits[i];
    uint64_t wanted = 0;
    int num_ranks = 0;
    for (size_t rank = 0; rank < demands.size(); ++rank) {
      const bool shares = rank == static_cast<size_t>(world.rank()) ||
                          (topology.host_of_rank[rank] == host && limit.id != 0 &&
                           std::ranges::find(demands[rank].limits, limit.id) != demands[rank].limits.end());
      if (!shares) continue;
      wanted += demands[rank].bytes;
      ++num_ranks;
    }
    const double allowed_mib = static_cast<double>(limit.bytes) / kMiB;
    const double wanted_mib = static_cast<double>(wanted) / kMiB;
    const std::string ranks = fmt::format("{} rank{}", num_ranks, num_ranks == 1 ? "" : "s");
    CADRE_CHECK(wanted <= limit.bytes,
                fmt::format("{} of {} want{} {:.0f} MiB of memory, {} {:.0f} MiB", ranks,
                            topology.host_names[static_cast<size_t>(host)], num_ranks == 1 ? "s" : "", wanted_mib,
                            limit.what, allowed_mib),
                limit.what == limits.front().what
                    ? "lower train.batch, raise train.micro_batches, or use more hosts"
                    : "lower train.batch, raise train.micro_batches, use more hosts, or ask the batch system or "
                      "container for more memory");
    const double share = wanted_mib / allowed_mib;
    if (share <= largest_share) continue;
    largest_share = share;
    line = fmt::format("{} {:.0f} MiB, of which {} take{} {:.0f} MiB", limit.what, allowed_mib, ranks,
                       num_ranks == 1 ? "s" : "", wanted_mib);
  }
  return line;
}

}  // namespace cadre
