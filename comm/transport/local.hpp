// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of this process: no launcher, quick tests, ThreadSanitizer sees every exchange.
#pragma once

#include <functional>
#include <memory>

#include "comm/transport/transport.hpp"

namespace cadre {

// Runs `body` on `num_ranks` threads, each with the transport of its rank, and joins them. When ranks throw, the others
// are released from their waits with an Error of their own, and the exception that came first is thrown again here. One
// that comes to no wait within the default deadline is left behind (note_call_left_behind) and named in the Error.
void run_local_ranks(int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body);

}  // namespace cadre
