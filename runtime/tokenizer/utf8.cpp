// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/utf8.hpp"

#include <boost/locale/utf.hpp>
#include <fmt/format.h>
#include <oniguruma.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace cadre {

namespace utf = boost::locale::utf;

size_t utf8_length(std::string_view text) {
  const char* place = text.data();
  const char* const end = place + text.size();
  while (place != end) {
    if (static_cast<unsigned char>(*place) < 0x80) {
      ++place;
      continue;
    }
    const char* next = place;
    const auto code_point = utf::utf_traits<char>::decode(next, end);
    if (code_point == utf::illegal || code_point == utf::incomplete) break;
    place = next;
  }
  return static_cast<size_t>(place - text.data());
}

char32_t take_character(std::string_view& text) {
  const char* place = text.data();
  const auto code_point = utf::utf_traits<char>::decode_valid(place);
  text.remove_prefix(static_cast<size_t>(place - text.data()));
  return code_point;
}

namespace {

// Bytes of the character that begins with this one; 1 where none does.
size_t length_of_character(unsigned char first) {
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  if (first >= 0xF0 && first <= 0xF4) return 4;
  return 1;
}

// Bytes at the end that begin a character and do not end it.
size_t length_of_unfinished(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    const bool continues = (byte & 0xC0) == 0x80;
    if (!continues) return length_of_character(byte) > back ? back : 0;
  }
  return 0;
}

}  // namespace

std::string Utf8Stream::put(std::string_view bytes) {
  std::string text = std::exchange(held_, {});
  text += bytes;
  held_ = text.substr(text.size() - length_of_unfinished(text));
  text.resize(text.size() - held_.size());
  return text;
}

std::string Utf8Stream::finish() { return std::exchange(held_, {}); }

namespace {

// Most characters that take three bytes: assigned for long, and looked up slowly.
bool is_common(char32_t c) { return c < 0x378 || (c >= 0x3400 && c <= 0x9FFC) || (c >= 0xAC00 && c <= 0xD7A3); }

bool is_noncharacter(char32_t c) { return (c & 0xFFFE) == 0xFFFE || (c >= 0xFDD0 && c <= 0xFDEF); }

bool is_unassigned(char32_t c) {
  static const int type = [] {
    constexpr std::string_view kPropertyName = "Cn";
    const auto* name = reinterpret_cast<const OnigUChar*>(kPropertyName.data());
    return ONIGENC_PROPERTY_NAME_TO_CTYPE(ONIG_ENCODING_UTF8, const_cast<OnigUChar*>(name),
                                          const_cast<OnigUChar*>(name) + kPropertyName.size());
  }();
  return !is_common(c) && !is_noncharacter(c) &&
         ONIGENC_IS_CODE_CTYPE(ONIG_ENCODING_UTF8, static_cast<OnigCodePoint>(c), static_cast<OnigCtype>(type)) != 0;
}

}  // namespace

std::string note_on_unassigned(std::string_view text) {
  int64_t count = 0;
  char32_t first = 0;
  while (!text.empty()) {
    std::string_view part = text.substr(0, utf8_length(text));
    text.remove_prefix(part.size());
    if (part.empty()) text.remove_prefix(1);
    while (!part.empty()) {
      const char32_t character = take_character(part);
      if (!is_unassigned(character)) continue;
      if (count++ == 0) first = character;
    }
  }
  if (count == 0) return "";
  return fmt::format(
      "{} character{} unknown to the Unicode tables of Oniguruma {}, the first U+{:04X}: programs with newer tables "
      "may "
      "cut {} into other tokens",
      count, count == 1 ? "" : "s", onig_version(), static_cast<uint32_t>(first), count == 1 ? "it" : "them");
}

}  // namespace cadre
