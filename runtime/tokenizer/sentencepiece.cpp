// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/sentencepiece.hpp"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/json_fields.hpp"

namespace cadre {
namespace {

// A field of a message in the encoding of Protocol Buffers, as a tokenizer.model is one.
struct ProtobufField {
  uint64_t number;
  uint64_t value;                           // of an integer
  std::optional<std::string_view> content;  // of what has a length
};

// Fields of a tokenizer.model that the SentencePiece library does not expose.
struct SentencePieceModel {
  bool is_bpe = false;
  bool maps_characters = false;
  bool removes_spaces = true;             // at the ends of a text, and of several all but one
  std::vector<std::string> special;       // pieces that are no text: control symbols and the one for what is unknown
  std::vector<std::string> user_defined;  // pieces that are never cut
};

// Throws: what was read is no model of SentencePiece.
[[noreturn]] void refuse_damaged_model() {
  throw Error(ErrorKind::input, "the model of SentencePiece is damaged", "is it a whole tokenizer.model?");
}

// The first bytes, `count` of them. Throws where there are fewer.
std::string_view take_bytes(std::string_view& bytes, uint64_t count) {
  if (count > bytes.size()) refuse_damaged_model();
  const std::string_view taken = bytes.substr(0, count);
  bytes.remove_prefix(count);
  return taken;
}

uint64_t take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = static_cast<unsigned char>(take_bytes(bytes, 1).front());
    value |= uint64_t{byte & 0x7FU} << shift;
    if (byte < 0x80) return value;
  }
  refuse_damaged_model();
}

// Takes the next field of a message, which is not empty. Throws on what is none.
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

// Fields and values as sentencepiece_model.proto numbers them.
constexpr uint64_t kPieces = 1;
constexpr uint64_t kPieceText = 1;  // of a piece
constexpr uint64_t kPieceType = 3;
enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };
constexpr uint64_t kTrainer = 2;
constexpr uint64_t kModelType = 3;  // of the trainer
constexpr uint64_t kBpe = 2;
constexpr uint64_t kNormalizer = 3;
constexpr uint64_t kDenormalizer = 5;
constexpr uint64_t kCharacterMap = 2;  // of the normalizer and the denormalizer
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

// Throws on what is damaged.
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
// The model, but with all spaces as they are and none put in front of a text; with or without the map of characters.
std::string with_spaces_as_they_are(const std::string& model, bool maps_characters) {
  constexpr std::string_view kMap("\x1A\x08\x12\x00", 4);
  constexpr std::string_view kNoMap("\x1A\x06", 2);
  constexpr std::string_view kSpaces("\x18\x00\x20\x00\x28\x01", 6);
  return model + std::string(maps_characters ? kNoMap : kMap) + std::string(kSpaces);
}

static_assert(std::endian::native == std::endian::little, "character maps are read as they are");

// A unit of the double array (Darts-clone) that a map of characters is: where its children are, and which byte leads here.
// One with the highest bit set is a value and has no children.
bool is_value(uint32_t unit) { return unit >> 31 != 0; }
bool has_value(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t offset_of(uint32_t unit) { return unit >> 10 << ((unit & 0x200) >> 6); }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFF; }

// u32 size of the array in bytes, the array, and the texts that values point into, each with a zero behind it.
void check_map(std::string_view map) {
  if (map.empty()) return;
  uint32_t size = 0;
  std::memcpy(&size, take_bytes(map, sizeof(size)).data(), sizeof(size));
  const std::string_view array = take_bytes(map, size);
  std::vector<uint32_t> units(array.size() / sizeof(uint32_t));
  if (units.empty() || map.empty() || map.back() != '\0') refuse_damaged_model();
  std::memcpy(units.data(), array.data(), units.size() * sizeof(uint32_t));
  for (size_t i = 0; i < units.size(); ++i) {
    if (is_value(units[i])) continue;
    const size_t children = i ^ offset_of(units[i]);
    if ((children | 0xFF) >= units.size()) refuse_damaged_model();
    if (has_value(units[i]) && value_of(units[children]) >= map.size()) refuse_damaged_model();
  }
}

// The SentencePiece library follows the offsets in a character map unchecked; this checks them first. `model` is the
// content of a tokenizer.model. Throws where following one of its character maps would lead out of it; other faults the
// library finds itself.
void check_character_maps(std::string_view model) {
  while (!model.empty()) {
    auto [number, value, content] = take_field(model);
    if ((number != kNormalizer && number != kDenormalizer) || !content) continue;
    while (!content->empty()) {
      const auto [inner, value_inside, map] = take_field(*content);
      if (inner == kCharacterMap && map) check_map(*map);
    }
  }
}

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which pieces have for a space

void check_status(const sentencepiece::util::Status& status, const char* what) {
  CADRE_CHECK(status.ok(), fmt::format("SentencePiece cannot {}: {}", what, status.message()),
              "is it a whole tokenizer.model?");
}

using Prefix = SentencePieceRules::Prefix;

class SentencePiece final : public Tokenizer {
 public:
  SentencePiece(const std::string& model, const SentencePieceRules& rules) : rules_(rules) {
    check_character_maps(model);
    load(rules.is_llama ? with_spaces_as_they_are(model, false) : model, processor_);
    CADRE_CHECK(processor_.GetPieceSize() > 0, "the model of SentencePiece has no pieces", "is it a tokenizer.model?");
    const SentencePieceModel pieces = read_sentencepiece_model(model);
    CADRE_CHECK(pieces.is_bpe || !rules.is_llama, "a LlamaTokenizer with a model of SentencePiece that is no BPE",
                "transformers makes other tokens of it than SentencePiece does");
    if (rules.is_llama && pieces.maps_characters) load(with_spaces_as_they_are(model, true), mapping_.emplace());
    removes_spaces_ = rules.is_llama && pieces.removes_spaces;
    if (rules.finds_special_pieces) {
      for (const std::string& piece : pieces.special) add_piece(piece, true);
    }
    if (rules.is_llama) {
      for (const std::string& piece : pieces.user_defined) add_piece(piece, false);
    }
    for (const AddedToken& token : rules.added) add(token);
  }

  int64_t vocab_size() const override { return processor_.GetPieceSize() + static_cast<int64_t>(behind_.size()); }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens;
    const auto take_token = [&](int32_t token) { tokens.push_back(token); };
    const auto take_text = [&](std::string_view part) { add_tokens_of(part, part.data() == text.data(), tokens); };
    const auto take_rest = [&](std::string_view part) { normalized_tokens_.cut(part, take_text, take_token); };
    raw_tokens_.cut(text, take_rest, take_token);
    return tokens;
  }

  std::string piece(int32_t token) const override {
    if (const AddedToken* added = behind(token)) return added->is_special ? "" : added->content;
    if (!has(token) || processor_.IsControl(token) || processor_.IsUnused(token)) return "";
    if (processor_.IsUnknown(token)) return decode_all({token});
    std::string text = processor_.IdToPiece(token);
    if (processor_.IsByte(token)) return {static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16))};  // <0xNN>
    for (size_t at = 0; (at = text.find(kSpace, at)) != std::string::npos; ++at)
      text.replace(at, kSpace.size(), 1, ' ');
    return text;
  }

  // Without the space that was put before the first word.
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    std::vector<int> known;
    for (const int32_t token : tokens) {
      if (has(token)) known.push_back(token);
      if (behind(token) == nullptr) continue;
      text += decode_all(std::exchange(known, {})) + piece(token);
    }
    text += decode_all(known);
    const bool has_space = rules_.is_llama && rules_.prefix != Prefix::none && text.starts_with(' ');
    return has_space ? text.substr(1) : text;
  }

  std::optional<int32_t> find(std::string_view content) const override {
    for (const AddedToken& token : behind_) {
      if (token.content == content) return token.id;
    }
    const int id = processor_.PieceToId(content);
    return has(id) && processor_.IdToPiece(id) == content ? std::optional<int32_t>(id) : std::nullopt;
  }

 private:
  bool has(int32_t token) const { return token >= 0 && token < processor_.GetPieceSize(); }

  // nullptr for what is a piece or no token.
  const AddedToken* behind(int32_t token) const {
    const int64_t index = int64_t{token} - processor_.GetPieceSize();
    const bool is_there = index >= 0 && index < static_cast<int64_t>(behind_.size());
    return is_there ? &behind_[static_cast<size_t>(index)] : nullptr;
  }

  void add_piece(const std::string& piece, bool is_special) {
    raw_tokens_.add({.content = piece, .id = processor_.PieceToId(piece), .is_special = is_special});
  }

  void add(const AddedToken& token) {
    const std::optional<int32_t> known = find(token.content);
    const auto next = static_cast<int32_t>(vocab_size());
    CADRE_CHECK(token.id == known.value_or(next),
                fmt::format("the added token {} has the id {}, allowed: {}", quoted(token.content), token.id,
                            known.value_or(next)),
                known ? "the model has it with this id" : "ids go on behind the pieces of the model");
    CADRE_CHECK(
        !token.is_normalized || rules_.is_llama,
        fmt::format("the added token {} is normalized, allowed: only with a LlamaTokenizer", quoted(token.content)));
    if (!known) behind_.push_back(token);
    (token.is_normalized ? normalized_tokens_ : raw_tokens_).add(token);
  }

  void add_tokens_of(std::string_view text, bool is_first, std::vector<int32_t>& tokens) const {
    const bool has_prefix = rules_.prefix == Prefix::all || (rules_.prefix == Prefix::first && is_first);
    const bool has_space = text.starts_with(' ') || text.starts_with(kSpace);
    const std::string with_space = has_prefix && !has_space ? std::string(" ").append(text) : std::string(text);
    const std::vector<int> made = tokens_of(processor_, with_space);
    const bool is_mapped = mapping_ && tokens_of(*mapping_, with_space) != made;
    const bool loses_spaces = removes_spaces_ && (text.ends_with(' ') || text.find("  ") != std::string_view::npos);
    CADRE_CHECK(!is_mapped && !loses_spaces,
                fmt::format("the model of SentencePiece changes the {} {}, the LlamaTokenizer of transformers does not",
                            is_mapped ? "characters of" : "spaces of", quoted(std::string(text))),
                "delete tokenizer_class in tokenizer_config.json, then both programs do what the model says");
    CADRE_CHECK(!rules_.is_llama || std::ranges::find(made, processor_.unk_id()) == made.end(),
                fmt::format("the model of SentencePiece has no tokens for all of {}", quoted(std::string(text))),
                "the LlamaTokenizer of transformers leaves out what it does not know");
    tokens.insert(tokens.end(), made.begin(), made.end());
  }

  static void load(const std::string& model, sentencepiece::SentencePieceProcessor& processor) {
    check_status(processor.LoadFromSerializedProto(model), "read the model");
  }

  static std::vector<int> tokens_of(const sentencepiece::SentencePieceProcessor& processor, std::string_view text) {
    std::vector<int> tokens;
    check_status(processor.Encode(text, &tokens), "encode a text");
    return tokens;
  }

  std::string decode_all(const std::vector<int>& tokens) const {
    std::string text;
    check_status(processor_.Decode(tokens, &text), "decode tokens");
    return text;
  }

  SentencePieceRules rules_;
  sentencepiece::SentencePieceProcessor processor_;
  std::optional<sentencepiece::SentencePieceProcessor> mapping_;  // where the model maps characters and must not
  bool removes_spaces_ = false;                                   // where it would, and must not
  std::vector<AddedToken> behind_;                                // by id, from that behind the last piece on
  AddedTokens raw_tokens_;                                        // looked for first
  AddedTokens normalized_tokens_;                                 // then these
};

}  // namespace

bool has_sentencepiece() { return true; }

std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& model, const SentencePieceRules& rules) {
  return std::make_unique<SentencePiece>(model, rules);
}

}  // namespace cadre
