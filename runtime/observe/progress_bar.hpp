// SPDX-License-Identifier: Apache-2.0
// How far a run is: one line at the bottom of the terminal, redrawn in place. Where stderr is no terminal, or under
// Slurm, where it ends in a file, nothing is ever drawn.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace cadre {

class ProgressBar {
 public:
  // `done_before`: what an earlier run did; the time left is judged without it.
  explicit ProgressBar(int64_t done_before);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws; once done = total the line goes away.
  void update(int64_t done, int64_t total);
  // Takes the line away, so that other text can be written.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  bool enabled_;
  bool drawn_ = false;
  int64_t done_before_;
  Clock::time_point begin_ = Clock::now();
};

// "[######..............]  30% | 0:01:05 elapsed | 0:02:32 left"; fraction in [0, 1].
std::string progress_text(double fraction, int64_t elapsed_seconds, int64_t left_seconds);

}  // namespace cadre
