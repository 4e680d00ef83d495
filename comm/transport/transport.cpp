// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/transport.hpp"

#include <memory>
#include <vector>

#include "comm/job/wait.hpp"

namespace cadre {

void start_liveness(Transport& world) {
  JobContext& job = world.job();
  const auto gather = [&world](std::span<const std::byte> mine) {
    struct Blocks {
      std::vector<std::byte> mine, all;
    };
    const auto blocks = std::make_shared<Blocks>();
    blocks->mine.assign(mine.begin(), mine.end());
    blocks->all.resize(mine.size() * static_cast<size_t>(world.size()));
    Request gathered = world.all_gather(blocks->mine, blocks->all);
    gathered.keep(blocks);
    wait(gathered);
    return blocks->all;
  };
  job.set_liveness(std::make_unique<Liveness>(world.rank(), world.size(), job.tracer(), gather));
}

}  // namespace cadre
