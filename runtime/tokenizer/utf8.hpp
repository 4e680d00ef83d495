// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string_view>

namespace cadre {

// Bytes of the longest beginning that is UTF-8 in whole characters.
size_t utf8_length(std::string_view text);

inline bool is_utf8_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Takes the first character; `text` is not empty and UTF-8.
char32_t take_character(std::string_view& text);

}  // namespace cadre
