// SPDX-License-Identifier: Apache-2.0
// A wait in Cadre is: poll, deadline, and a message that says who waits for whom.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "comm/transport/request.hpp"

namespace cadre {

// Where in the run a rank is, for messages and traces. -1: not inside a step, not inside a layer.
struct Position {
  int64_t step = -1;
  int layer = -1;
  const char* phase = "";

  std::string describe() const;  // "step 12, layer 3, dispatch"
};

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
