// SPDX-License-Identifier: Apache-2.0
// What ranks that are threads of one process do with bytes: a message is a copy in the mailbox of its receiver.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "comm/transport/transport.hpp"

namespace cadre {

// Set once a rank of the process failed: then the others throw where they wait.
using RankFailed = std::shared_ptr<std::atomic<bool>>;

// The transport of each rank of a new world. One job a rank.
std::vector<std::unique_ptr<Transport>> make_local_world(std::span<const std::unique_ptr<JobContext>> jobs,
                                                         RankFailed failed);

}  // namespace cadre
