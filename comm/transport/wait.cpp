// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/wait.hpp"

#include <thread>

#include "comm/base/check.hpp"

namespace cadre {

void Deadline::check(const Request& request, const Position& position) const {
  if (Clock::now() < end_) [[likely]]
    return;
  throw Error(
      ErrorKind::timeout,
      fmt::format("{}: waited {:.0f} s in {} for {}", position.describe(), seconds_, request.what(), request.missing()),
      "look at the log of the rank that is named; exchange.deadline_s sets the limit");
}

void wait(Request& request, double deadline_seconds, const Position& position) {
  if (request.test()) return;
  const TraceActivity activity(TraceKind::wait, position);
  const Deadline deadline(deadline_seconds);
  while (!request.test()) {
    deadline.check(request, position);
    std::this_thread::yield();
  }
}

}  // namespace cadre
