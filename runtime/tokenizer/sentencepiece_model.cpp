// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/sentencepiece_model.hpp"

#include "runtime/tokenizer/protobuf.hpp"

namespace cadre {
namespace {

// Fields and values as sentencepiece_model.proto numbers them.
constexpr uint64_t kPieces = 1;
constexpr uint64_t kPieceText = 1;  // of a piece
constexpr uint64_t kPieceType = 3;
enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };
constexpr uint64_t kTrainer = 2;
constexpr uint64_t kModelType = 3;  // of the trainer
constexpr uint64_t kBpe = 2;
constexpr uint64_t kNormalizer = 3;
constexpr uint64_t kCharacterMap = 2;  // of the normalizer
constexpr uint64_t kRemovesSpaces = 4;

void read_piece(std::string_view piece, SentencePieceModel& model) {
  std::string text;
  uint64_t type = kNormal;
  while (!piece.empty()) {
    const auto [number, value, content] = take_field(piece);
    if (number == kPieceText && content) text = *content;
    if (number == kPieceType) type = value;
  }
  if (text.empty()) return;
  if (type == kUnknown || type == kControl) model.special.push_back(text);
  if (type == kUserDefined) model.user_defined.push_back(text);
}

}  // namespace

SentencePieceModel read_sentencepiece_model(std::string_view bytes) {
  SentencePieceModel model;
  while (!bytes.empty()) {
    auto [number, value, content] = take_field(bytes);
    if (number == kPieces && content) read_piece(*content, model);
    while (content && !content->empty() && (number == kTrainer || number == kNormalizer)) {
      const ProtobufField field = take_field(*content);
      if (number == kTrainer && field.number == kModelType) model.is_bpe = field.value == kBpe;
      if (number == kNormalizer && field.number == kRemovesSpaces) model.removes_spaces = field.value != 0;
      if (number == kNormalizer && field.number == kCharacterMap && field.content) {
        model.maps_characters = !field.content->empty();
      }
    }
  }
  return model;
}

// Of a field that comes twice the last value counts; those of a message are put together. normalizer_spec (3):
// precompiled_charsmap (2) = "", add_dummy_prefix (3), remove_extra_whitespaces (4) = false, escape_whitespaces (5) = true.
std::string with_spaces_as_they_are(const std::string& model, bool maps_characters) {
  constexpr std::string_view kMap("\x1A\x08\x12\x00", 4);
  constexpr std::string_view kNoMap("\x1A\x06", 2);
  constexpr std::string_view kSpaces("\x18\x00\x20\x00\x28\x01", 6);
  return model + std::string(maps_characters ? kNoMap : kMap) + std::string(kSpaces);
}

}  // namespace cadre
