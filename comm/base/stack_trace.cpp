// SPDX-License-Identifier: Apache-2.0
#include "comm/base/stack_trace.hpp"

#include <boost/stacktrace.hpp>

#include <mutex>

namespace cadre {
namespace {

constexpr size_t kMostFrames = 48;

struct Noted {
  std::mutex mutex;
  std::string text;
  boost::stacktrace::stacktrace stack{0, 0};
};

Noted& noted() {
  static auto* const newest = new Noted;  // also there while the process ends
  return *newest;
}

}  // namespace

std::string stack_trace() { return to_string(boost::stacktrace::stacktrace(1, kMostFrames)); }

void note_stack(const std::string& text) {
  boost::stacktrace::stacktrace stack(1, kMostFrames);
  Noted& newest = noted();
  const std::lock_guard lock(newest.mutex);
  newest.text = text;
  newest.stack = std::move(stack);
}

std::string noted_stack(const std::string& text) {
  Noted& newest = noted();
  const std::lock_guard lock(newest.mutex);
  return newest.text == text && !text.empty() ? to_string(newest.stack) : "";
}

}  // namespace cadre
