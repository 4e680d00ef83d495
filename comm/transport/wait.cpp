// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/wait.hpp"

#include <atomic>
#include <thread>

#include "comm/base/check.hpp"
#include "comm/liveness/liveness.hpp"

namespace cadre {
namespace {

std::atomic<double> default_seconds = kDefaultDeadlineSeconds;

// Who holds this process up, as far as the others say.
std::string late_ones() {
  Liveness* const processes = liveness();
  const std::string late = processes == nullptr ? "" : processes->describe_late();
  return late.empty() ? "" : "; " + late;
}

}  // namespace

double default_deadline_seconds() { return default_seconds.load(std::memory_order_relaxed); }
void set_default_deadline(double seconds) { default_seconds.store(seconds); }

void Deadline::check(const Position& position, const std::function<std::string()>& what,
                     const std::function<std::string()>& missing) const {
  if (const Liveness* processes = liveness(); processes != nullptr && processes->news()) [[unlikely]] {
    throw Error(
        ErrorKind::lost_rank,
        fmt::format("{}: {} died while this rank was in {}", position.describe(), processes->describe_lost(), what()),
        "its own last lines, or the kernel's log (out of memory?), say why; the last checkpoint stands");
  }
  if (Clock::now() < end_) [[likely]]
    return;
  throw Error(
      ErrorKind::timeout,
      fmt::format("{}: waited {:.0f} s in {} for {}{}", position.describe(), seconds_, what(), missing(), late_ones()),
      "look at the log of the rank that is named; exchange.deadline_s sets the limit");
}

void wait(Request& request, double deadline_seconds, const Position& position) {
  if (request.test()) return;
  const bool is_given = position.step >= 0 || position.layer >= 0 || *position.phase != '\0';
  // With liveness the process is one rank, so that where it was last is where this rank is.
  const Position at = is_given || liveness() == nullptr ? position : whereabouts().at;
  const TraceActivity activity(TraceKind::wait, at);
  const Deadline deadline(deadline_seconds);
  while (!request.test()) {
    deadline.check(request, at);
    std::this_thread::yield();
  }
}

}  // namespace cadre
