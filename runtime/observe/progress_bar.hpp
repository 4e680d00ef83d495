// SPDX-License-Identifier: Apache-2.0
// The progress of a run: one line at the bottom of the terminal, redrawn in place.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace cadre {

class ProgressBar {
 public:
  enum class Show { automatic, always, never };

  // `done_before`: what an earlier run did; the time left is judged without it. automatic: draws where this process, or
  // the mpirun that started it, has a terminal (terminal_descriptor()); always: else on stderr.
  explicit ProgressBar(int64_t done_before, Show show = Show::automatic);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws; once done = total the line goes away.
  void update(int64_t done, int64_t total);
  // Takes the line away, so that other text can be written.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  void write(const std::string& text) const;

  int descriptor_;  // -1: nothing is drawn
  bool drawn_ = false;
  int64_t done_before_;
  Clock::time_point begin_ = Clock::now();
};

// "[######..............]  30% | 0:01:05 elapsed | 0:02:32 left"; fraction in [0, 1].
std::string progress_text(double fraction, int64_t elapsed_seconds, int64_t left_seconds);

// "1:02:32"
std::string clock_text(int64_t seconds);

}  // namespace cadre
