// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/transport.hpp"

#include <vector>

#include "comm/job/wait.hpp"

namespace cadre {

void start_liveness(Transport& world) {
  JobContext& job = world.job();
  const auto gather = [&world](std::span<const std::byte> mine) {
    std::vector<std::byte> all(mine.size() * static_cast<size_t>(world.size()));
    Request gathered = world.all_gather(mine, all);
    wait(gathered);
    return all;
  };
  job.set_liveness(std::make_unique<Liveness>(world.rank(), world.size(), job.tracer(), gather));
}

}  // namespace cadre
