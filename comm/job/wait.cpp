// SPDX-License-Identifier: Apache-2.0
#include "comm/job/wait.hpp"

#include <thread>

#include "comm/base/check.hpp"

namespace cadre {

void Deadline::check(const Position& position, const std::function<std::string()>& what,
                     const std::function<std::string()>& missing) const {
  Liveness* const processes = job_ == nullptr ? nullptr : job_->liveness();
  if (processes != nullptr && processes->news()) [[unlikely]] {
    throw Error(
        ErrorKind::lost_rank,
        fmt::format("{}: {} died while this rank was in {}", position.describe(), processes->describe_lost(), what()),
        "its own last lines, or the kernel's log (out of memory?), say why; the last checkpoint stands");
  }
  if (Clock::now() < end_) [[likely]]
    return;
  const std::string late = processes == nullptr ? "" : processes->describe_late();
  throw Error(ErrorKind::timeout,
              fmt::format("{}: waited {:.0f} s in {} for {}{}{}", position.describe(), seconds_, what(), missing(),
                          late.empty() ? "" : "; ", late),
              "look at the log of the rank that is named; exchange.deadline_s sets the limit");
}

void wait(Request& request, std::optional<double> deadline_seconds, const Position& position) {
  if (request.test()) return;
  JobContext* const job = request.job();
  const bool is_given = position.step >= 0 || position.layer >= 0 || *position.phase != '\0';
  const Position at = is_given || job == nullptr ? position : job->tracer().whereabouts().at;
  std::optional<TraceActivity> activity;
  if (job != nullptr) activity.emplace(job->tracer(), TraceKind::wait, at);
  const Deadline deadline(
      job, deadline_seconds.value_or(job == nullptr ? kDefaultDeadlineSeconds : job->deadline_seconds()));
  while (!request.test()) {
    deadline.check(request, at);
    std::this_thread::yield();
  }
}

}  // namespace cadre
