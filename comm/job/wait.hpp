// SPDX-License-Identifier: Apache-2.0
// A wait in Cadre is: poll, deadline, and a message that says who waits for whom. Where the job has a liveness, a wait also
// ends when a rank has died, and the message says who is late.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "comm/base/trace.hpp"
#include "comm/job/job_context.hpp"
#include "comm/job/request.hpp"

namespace cadre {

// How long one wait may take.
class Deadline {
 public:
  // `job`: whose liveness ends the wait; nullptr: only time does.
  Deadline(const JobContext* job, double seconds)
      : job_(job),
        seconds_(seconds),
        end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds))) {}

  // Throws ErrorKind::lost_rank once a rank died, and ErrorKind::timeout once the time is over. Both name the request and
  // `position`; the first says who died, the second who is missing and where those are that hold this rank up.
  void check(const Request& request, const Position& position) const {
    check(
        position, [&] { return request.what(); }, [&] { return request.missing(); });
  }
  // The same for a wait that is for no request: `what` and `missing` are asked for when it fails.
  void check(const Position& position, const std::function<std::string()>& what,
             const std::function<std::string()>& missing) const;

 private:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  const JobContext* job_;
  double seconds_;
  Clock::time_point end_;
};

// Polls until the request is complete; yields the core between polls. The deadline is the job's where none is given.
void wait(Request& request, std::optional<double> deadline_seconds = {}, const Position& position = {});

}  // namespace cadre
