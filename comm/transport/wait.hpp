// SPDX-License-Identifier: Apache-2.0
// A wait in Cadre is: poll, deadline, and a message that says who waits for whom. Where the process has a
// liveness, a wait also ends when a rank has died, and the message says who is late.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "comm/base/trace.hpp"
#include "comm/transport/request.hpp"

namespace cadre {

inline constexpr double kDefaultDeadlineSeconds = 120.0;

// Of waits of this process that are given no other; kDefaultDeadlineSeconds until it is set.
double default_deadline_seconds();
void set_default_deadline(double seconds);

// How long one wait may take.
class Deadline {
 public:
  explicit Deadline(double seconds = default_deadline_seconds())
      : seconds_(seconds), end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds))) {}

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
  double seconds_;
  Clock::time_point end_;
};

// Polls until the request is complete; yields the core between polls.
void wait(Request& request, double deadline_seconds = default_deadline_seconds(), const Position& position = {});

}  // namespace cadre
