// SPDX-License-Identifier: Apache-2.0
// Tokens of bytes: the id of a token is the value of its byte, so any text has tokens and any vocabulary of 256 works.
#pragma once

#include <cstdint>
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

}  // namespace cadre
