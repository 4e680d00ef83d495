// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/utf8.hpp"

#include <boost/locale/utf.hpp>

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

}  // namespace cadre
