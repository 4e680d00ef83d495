// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/sentencepiece.hpp"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/character_map.hpp"
#include "runtime/tokenizer/json_fields.hpp"
#include "runtime/tokenizer/sentencepiece_model.hpp"

namespace cadre {
namespace {

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
