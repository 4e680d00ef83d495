// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of this process: no launcher, quick tests, ThreadSanitizer sees every exchange.
#pragma once

#include <functional>
#include <memory>

#include "comm/transport/transport.hpp"

namespace cadre {

// Runs `body` on `num_ranks` threads, each with the transport of its rank and a context of its own with the deadline of
// `job`, and joins them. When ranks throw, the others are released from their waits with an Error of their own, and the
// exception that came first is thrown again here. A rank that comes to no wait within its deadline is left behind
// (left_calls_behind of `job`) and named in the Error.
void run_local_ranks(const JobContext& job, int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body);
// In a job of its own.
void run_local_ranks(int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body);

}  // namespace cadre
