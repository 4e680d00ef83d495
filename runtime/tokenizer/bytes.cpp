// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/bytes.hpp"

#include <fmt/format.h>

#include "comm/base/check.hpp"

namespace cadre {

std::vector<int32_t> encode_bytes(std::string_view text) {
  std::vector<int32_t> tokens;
  tokens.reserve(text.size());
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

std::string decode_bytes(std::span<const int32_t> tokens) {
  std::string text;
  text.reserve(tokens.size());
  for (const int32_t token : tokens) {
    CADRE_CHECK(token >= 0 && token < kByteVocabSize,
                fmt::format("token id {} is no byte, allowed: integer in [0, 255]", token),
                "the model was trained with another tokenizer");
    text += static_cast<char>(token);
  }
  return text;
}

std::optional<int32_t> ByteTokenizer::find(std::string_view content) const {
  if (content.size() != 1) return std::nullopt;
  return static_cast<unsigned char>(content.front());
}

}  // namespace cadre
