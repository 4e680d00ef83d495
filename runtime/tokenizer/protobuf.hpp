// SPDX-License-Identifier: Apache-2.0
// Messages in the encoding of Protocol Buffers, as a tokenizer.model is one.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace cadre {

struct ProtobufField {
  uint64_t number;
  uint64_t value;                           // of an integer
  std::optional<std::string_view> content;  // of what has a length
};

// Takes the next field of a message, which is not empty. Throws on what is none.
ProtobufField take_field(std::string_view& message);

// The first bytes, `count` of them. Throws where there are fewer.
std::string_view take_bytes(std::string_view& bytes, uint64_t count);

// Throws: what was read is no model of SentencePiece.
[[noreturn]] void refuse_damaged_model();

}  // namespace cadre
