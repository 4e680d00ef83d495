// SPDX-License-Identifier: Apache-2.0
// Texts that end where one of some strings appears.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cadre {

// Reads a text as it is made and gives it back up to the first of the strings, which may begin anywhere in it. What may be
// the beginning of one is held back until it is clear.
class StopStrings {
 public:
  // Empty strings stop nothing.
  explicit StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {}

  // What is certain now. Of strings that end at the same byte the longest counts. Nothing once the text is over.
  std::string put(std::string_view bytes);
  // What was held back, at the end of the text.
  std::string finish();
  bool is_over() const { return is_over_; }

 private:
  std::vector<std::string> strings_;
  std::string held_;
  bool is_over_ = false;
};

}  // namespace cadre
