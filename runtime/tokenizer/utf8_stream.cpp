// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/utf8_stream.hpp"

#include <algorithm>
#include <utility>

namespace cadre {
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

}  // namespace cadre
