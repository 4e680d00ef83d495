// SPDX-License-Identifier: Apache-2.0
// Keys of a model that are lists: numbers with commas between them, as text.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {

[[noreturn]] inline void refuse_list(const char* key, const std::string& text, const char* allowed) {
  throw Error(ErrorKind::input, fmt::format("model.{} = \"{}\", allowed: {}", key, text, allowed),
              "numbers with commas between them, nothing else");
}

// Calls `visit` with each part between commas.
template <class Visit>
void each_part(std::string_view text, Visit&& visit) {
  while (!text.empty()) {
    const size_t comma = text.find(',');
    visit(text.substr(0, comma));
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
}

inline bool read_number(std::string_view text, int64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

// Throws an Error that names `key` unless each number is in [least, most].
template <class Number>
std::vector<Number> numbers_of(const char* key, const std::string& text, int64_t least, int64_t most) {
  const std::string allowed = fmt::format("integers in [{}, {}], as 1,2,3", least, most);
  std::vector<Number> numbers;
  each_part(text, [&](std::string_view part) {
    int64_t number = 0;
    if (!read_number(part, number) || number < least || number > most) refuse_list(key, text, allowed.c_str());
    numbers.push_back(static_cast<Number>(number));
  });
  return numbers;
}

}  // namespace cadre
