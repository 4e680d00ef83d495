// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/start_liveness.hpp"

#include <vector>

#include "comm/transport/wait.hpp"

namespace cadre {

std::unique_ptr<Liveness> start_liveness(Transport& world) {
  return std::make_unique<Liveness>(world.rank(), world.size(), [&world](std::span<const std::byte> mine) {
    std::vector<std::byte> all(mine.size() * static_cast<size_t>(world.size()));
    Request gathered = world.all_gather(mine, all);
    wait(gathered);
    return all;
  });
}

}  // namespace cadre
