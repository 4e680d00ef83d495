// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/progress_bar.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "comm/base/console.hpp"

namespace cadre {
namespace {

constexpr int kBarWidth = 20;
constexpr const char* kEraseLine = "\r\x1b[K";

int descriptor_for(ProgressBar::Show show) {
  if (show == ProgressBar::Show::never) return -1;
  const int terminal = terminal_descriptor();
  return terminal < 0 && show == ProgressBar::Show::always ? STDERR_FILENO : terminal;
}

}  // namespace

std::string clock_text(int64_t seconds) {
  return fmt::format("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

std::string progress_text(double fraction, int64_t elapsed_seconds, int64_t left_seconds) {
  const auto filled = static_cast<size_t>(fraction * kBarWidth);
  return fmt::format("[{:.<{}}] {:>3}% | {} elapsed | {} left", std::string(filled, '#'), kBarWidth,
                     static_cast<int>(fraction * 100.0), clock_text(elapsed_seconds), clock_text(left_seconds));
}

ProgressBar::ProgressBar(int64_t done_before, Show show)
    : descriptor_(descriptor_for(show)), done_before_(done_before) {}

void ProgressBar::update(int64_t done, int64_t total) {
  if (descriptor_ < 0) return;
  if (done <= done_before_ || done >= total) return clear();
  const std::chrono::duration<double> elapsed = Clock::now() - begin_;
  const double left = elapsed.count() / static_cast<double>(done - done_before_) * static_cast<double>(total - done);
  const double fraction = static_cast<double>(done) / static_cast<double>(total);
  write(kEraseLine + progress_text(fraction, static_cast<int64_t>(elapsed.count()), static_cast<int64_t>(left)));
  drawn_ = true;
}

void ProgressBar::clear() {
  if (!drawn_) return;
  write(kEraseLine);
  drawn_ = false;
}

// A bar is not worth an error: what cannot be written is lost.
void ProgressBar::write(const std::string& text) const {
  std::FILE* const stream = descriptor_ == STDOUT_FILENO ? stdout : stderr;
  if (std::ferror(stream) != 0) return;
  static_cast<void>(std::fputs(text.c_str(), stream));
  static_cast<void>(std::fflush(stream));
}

}  // namespace cadre
