// SPDX-License-Identifier: Apache-2.0
// Tokens of bytes: the id of a token is the value of its byte, so any text has tokens and any vocabulary of 256 works.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

inline constexpr int64_t kByteVocabSize = 256;

std::vector<int32_t> encode_bytes(std::string_view text);

// An id outside [0, 256) throws.
std::string decode_bytes(std::span<const int32_t> tokens);

}  // namespace cadre
