// SPDX-License-Identifier: Apache-2.0
#include "comm/base/check.hpp"

#include <boost/stacktrace.hpp>

#include <mutex>
#include <string_view>
#include <utility>

namespace cadre {
namespace {

// Whatever a file or an argument put into a message, it stays one line and moves no cursor.
std::string one_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      line += fmt::format("\\x{:02x}", byte);
    } else {
      line += c;
    }
  }
  return line;
}

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

Error::Error(ErrorKind kind, const std::string& text, const std::string& hint, std::source_location where)
    : kind_(kind), text_(one_line(text)), hint_(one_line(hint)) {
  full_ = text_;
  if (!hint_.empty()) full_ += " (hint: " + hint_ + ")";
  if (kind_ == ErrorKind::internal) {
    full_ += fmt::format(" [{}:{}]", std::string_view(where.file_name()), where.line());
    note_stack(text_);
  }
}

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::input: return 2;
    case ErrorKind::environment: return 3;
    case ErrorKind::timeout: return 4;
    case ErrorKind::numerics: return 5;
    case ErrorKind::lost_rank: return 6;
    case ErrorKind::peer: return 7;
    case ErrorKind::restart: return 75;
    case ErrorKind::internal: return 70;
  }
  return 70;
}

void ErrorList::raise() const {
  if (errors_.empty()) return;
  if (errors_.size() == 1) throw errors_.front();
  std::string all;
  for (const Error& error : errors_) {
    all += all.empty() ? "" : kNextError;
    all += &error == &errors_.back() ? error.text() : std::string(error.what());
  }
  throw Error(ErrorKind::input, all, errors_.back().hint());
}

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
