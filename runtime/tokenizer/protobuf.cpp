// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/protobuf.hpp"

#include "comm/base/check.hpp"

namespace cadre {
namespace {

uint64_t take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = static_cast<unsigned char>(take_bytes(bytes, 1).front());
    value |= uint64_t{byte & 0x7FU} << shift;
    if (byte < 0x80) return value;
  }
  refuse_damaged_model();
}

}  // namespace

void refuse_damaged_model() {
  throw Error(ErrorKind::input, "the model of SentencePiece is damaged", "is it a whole tokenizer.model?");
}

std::string_view take_bytes(std::string_view& bytes, uint64_t count) {
  if (count > bytes.size()) refuse_damaged_model();
  const std::string_view taken = bytes.substr(0, count);
  bytes.remove_prefix(count);
  return taken;
}

ProtobufField take_field(std::string_view& message) {
  const uint64_t tag = take_varint(message);
  const uint64_t number = tag >> 3;
  switch (tag & 7) {
    case 0: return {number, take_varint(message), std::nullopt};
    case 1: take_bytes(message, 8); return {number, 0, std::nullopt};
    case 2: return {number, 0, take_bytes(message, take_varint(message))};
    case 5: take_bytes(message, 4); return {number, 0, std::nullopt};
    default: refuse_damaged_model();
  }
}

}  // namespace cadre
