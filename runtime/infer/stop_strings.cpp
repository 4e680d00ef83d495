// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/stop_strings.hpp"

#include <algorithm>
#include <utility>

namespace cadre {

std::string StopStrings::put(std::string_view bytes) {
  for (const char byte : bytes) {
    if (is_over_) break;
    held_ += byte;
    size_t longest = 0;
    for (const std::string& string : strings_) {
      if (!string.empty() && held_.ends_with(string)) longest = std::max(longest, string.size());
    }
    if (longest == 0) continue;
    is_over_ = true;
    held_.resize(held_.size() - longest);
  }
  size_t kept = 0;
  for (const std::string& string : strings_) {
    const size_t most = is_over_ || string.empty() ? 0 : std::min(string.size() - 1, held_.size());
    for (size_t length = kept + 1; length <= most; ++length) {
      if (held_.ends_with(std::string_view(string).substr(0, length))) kept = length;
    }
  }
  std::string certain = held_.substr(0, held_.size() - kept);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

}  // namespace cadre
