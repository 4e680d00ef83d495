// SPDX-License-Identifier: Apache-2.0
// Tokens of bytes: the id of a token is the value of its byte, so any text has tokens and any vocabulary of 256 works.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

inline constexpr int64_t kByteVocabSize = 256;

std::vector<int32_t> encode_bytes(std::string_view text);

// An id outside [0, 256) throws.
std::string decode_bytes(std::span<const int32_t> tokens);

class ByteTokenizer final : public Tokenizer {
 public:
  int64_t vocab_size() const override { return kByteVocabSize; }
  std::vector<int32_t> encode(std::string_view text) const override { return encode_bytes(text); }
  std::string piece(int32_t token) const override { return token < kByteVocabSize ? decode_bytes({&token, 1}) : ""; }
  std::optional<int32_t> find(std::string_view content) const override;
};

// How a tokenizer.json spells bytes: each as one printable character, so that any token is text. Bytes that are printable
// in Latin-1 stand for themselves, the others are U+0100, U+0101, ... in order; a space is U+0120.
std::string spell_byte(uint8_t byte);

// The bytes of a token; nothing where one of its characters is not in the alphabet.
std::optional<std::string> bytes_spelled(std::string_view token);

// Tokens of bytes as other programs read them.

// A tokenizer.json of 256 tokens: the id of each is the value of its byte, and nothing is merged.
std::string byte_tokenizer_json();

// The tokenizer_config.json beside it, by which the AutoTokenizer of transformers knows what to open.
std::string byte_tokenizer_config();

}  // namespace cadre
