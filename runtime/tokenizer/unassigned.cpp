// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/unassigned.hpp"

#include <fmt/format.h>
#include <oniguruma.h>

#include <cstdint>

#include "runtime/tokenizer/utf8.hpp"

namespace cadre {
namespace {

// Most characters that take three bytes: assigned for long, and looked up slowly.
bool is_common(char32_t c) { return c < 0x378 || (c >= 0x3400 && c <= 0x9FFC) || (c >= 0xAC00 && c <= 0xD7A3); }

bool is_noncharacter(char32_t c) { return (c & 0xFFFE) == 0xFFFE || (c >= 0xFDD0 && c <= 0xFDEF); }

bool is_unassigned(char32_t c) {
  static const int type = [] {
    constexpr std::string_view kName = "Cn";
    const auto* name = reinterpret_cast<const OnigUChar*>(kName.data());
    return ONIGENC_PROPERTY_NAME_TO_CTYPE(ONIG_ENCODING_UTF8, const_cast<OnigUChar*>(name),
                                          const_cast<OnigUChar*>(name) + kName.size());
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
