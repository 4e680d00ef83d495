// SPDX-License-Identifier: Apache-2.0
// UTF-8: characters of a text, whole characters of bytes that arrive in pieces, and characters unknown to Oniguruma.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace cadre {

// Bytes of the longest beginning that is UTF-8 in whole characters.
size_t utf8_length(std::string_view text);

inline bool is_utf8_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Takes the first character; `text` is not empty and UTF-8.
char32_t take_character(std::string_view& text);

// Bytes that come in pieces, let through in whole characters of UTF-8, as a terminal wants them: a token may end inside
// a character.
class Utf8Stream {
 public:
  // What can be shown now. Bytes that belong to no character pass as they are, so that what all calls return is, one
  // after the other, what was put in.
  std::string put(std::string_view bytes);

  // What was held back, at the end of the text.
  std::string finish();

 private:
  std::string held_;  // the first bytes of a character, 3 at most
};

// One line about the characters of a text to which the Unicode tables of Oniguruma assign nothing, and newer ones may;
// empty where there are none.
std::string note_on_unassigned(std::string_view text);

}  // namespace cadre
