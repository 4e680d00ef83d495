// SPDX-License-Identifier: Apache-2.0
// How a tokenizer.json spells bytes: each as one printable character, so that any token is text. Bytes that are printable
// in Latin-1 stand for themselves, the others are U+0100, U+0101, ... in order; a space is U+0120.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cadre {

std::string spell_byte(uint8_t byte);

// The bytes of a token; nothing where one of its characters is not in the alphabet.
std::optional<std::string> bytes_spelled(std::string_view token);

}  // namespace cadre
