// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/byte_alphabet.hpp"

#include <array>

namespace cadre {
namespace {

constexpr size_t kNumCharacters = 0x100 + 68;  // of which 68 are those of bytes that are not printable
constexpr int16_t kNoByte = -1;

constexpr bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

struct Alphabet {
  std::array<uint16_t, 256> character{};       // of a byte
  std::array<int16_t, kNumCharacters> byte{};  // of a character
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte.fill(kNoByte);
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const uint16_t character = is_printable(byte) ? static_cast<uint16_t>(byte) : next++;
    alphabet.character[static_cast<size_t>(byte)] = character;
    alphabet.byte[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string spell_byte(uint8_t byte) {
  const uint16_t character = kAlphabet.character[byte];
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0 | (character >> 6)), static_cast<char>(0x80 | (character & 0x3F))};
}

std::optional<std::string> bytes_spelled(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size(); ++i) {
    auto character = static_cast<unsigned char>(token[i]);
    size_t code = character;
    if (character >= 0x80) {  // all of the alphabet have two bytes then
      if (character < 0xC2 || character > 0xDF || i + 1 == token.size()) return std::nullopt;
      const auto second = static_cast<unsigned char>(token[++i]);
      if ((second & 0xC0) != 0x80) return std::nullopt;
      code = static_cast<size_t>(character & 0x1F) << 6 | (second & 0x3F);
    }
    if (code >= kNumCharacters || kAlphabet.byte[code] == kNoByte) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.byte[code]);
  }
  return bytes;
}

}  // namespace cadre
