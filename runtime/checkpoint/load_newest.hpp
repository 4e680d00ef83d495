// SPDX-License-Identifier: Apache-2.0
// Going on from the newest checkpoint that is whole, when those before it in the list are damaged.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

// Collective over `world`. Runs `load` with each of the candidates of rank 0 (see list_checkpoints) in turn, until none
// of the ranks throws, and returns that one; empty without candidates. What a rank throws of one, be it input or
// environment, goes to `warn` on rank 0 as a line that names the rank, the file and the reason. Throws when all are
// damaged, and at once on an error of another kind.
std::filesystem::path load_newest(const Communicator& world, double deadline_seconds,
                                  const std::vector<std::filesystem::path>& candidates,
                                  const std::function<void(const std::filesystem::path&)>& load,
                                  const std::function<void(const std::string&)>& warn);

}  // namespace cadre
