// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of this process: no launcher, quick tests, ThreadSanitizer sees every exchange.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/transport/transport.hpp"

namespace cadre {

// Runs `body` on `num_ranks` threads, each with the transport of its rank and a context of its own with the deadline of
// `job`, and joins them. When ranks throw, the others are released from their waits with an Error of their own, and the
// exception that came first is thrown again here. A rank that comes to no wait within its deadline is left behind
// (left_calls_behind of `job`) and named in the Error.
void run_local_ranks(const JobContext& job, int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body);
// In a job of its own.
void run_local_ranks(int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body);

// Set once a rank of the process failed: then the others throw where they wait.
using RankFailed = std::shared_ptr<std::atomic<bool>>;

// The transport of each rank of a new world. One job a rank.
std::vector<std::unique_ptr<Transport>> make_local_world(std::span<const std::unique_ptr<JobContext>> jobs,
                                                         RankFailed failed);

}  // namespace cadre
