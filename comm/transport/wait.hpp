// SPDX-License-Identifier: Apache-2.0
// A wait in Cadre is: poll, deadline, and a message that says who waits for whom.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "comm/base/trace.hpp"
#include "comm/transport/request.hpp"

namespace cadre {

inline constexpr double kDefaultDeadlineSeconds = 120.0;

// How long one wait may take.
class Deadline {
 public:
  explicit Deadline(double seconds = kDefaultDeadlineSeconds)
      : seconds_(seconds), end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds))) {}

  // Throws ErrorKind::timeout, naming the request, who is missing and `position`, once the time is over.
  void check(const Request& request, const Position& position) const;

 private:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  double seconds_;
  Clock::time_point end_;
};

// Polls until the request is complete; yields the core between polls.
void wait(Request& request, double deadline_seconds = kDefaultDeadlineSeconds, const Position& position = {});

}  // namespace cadre
