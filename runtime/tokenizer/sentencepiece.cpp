// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/sentencepiece.hpp"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <string_view>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/character_map.hpp"

namespace cadre {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which pieces have for a space

void check_status(const sentencepiece::util::Status& status, const char* what) {
  CADRE_CHECK(status.ok(), fmt::format("SentencePiece cannot {}: {}", what, status.message()),
              "is it a whole tokenizer.model?");
}

class SentencePiece final : public Tokenizer {
 public:
  explicit SentencePiece(const std::string& model) {
    check_character_maps(model);
    check_status(processor_.LoadFromSerializedProto(model), "read the model");
    CADRE_CHECK(processor_.GetPieceSize() > 0, "the model of SentencePiece has no pieces", "is it a tokenizer.model?");
    if (processor_.eos_id() >= 0) set_end_of_text(processor_.eos_id());
  }

  int64_t vocab_size() const override { return processor_.GetPieceSize(); }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int> tokens;
    check_status(processor_.Encode(text, &tokens), "encode a text");
    return {tokens.begin(), tokens.end()};
  }

  std::string piece(int32_t token) const override {
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
    std::vector<int> known;
    for (const int32_t token : tokens) {
      if (has(token)) known.push_back(token);
    }
    return decode_all(known);
  }

  std::optional<int32_t> find(std::string_view content) const override {
    const int id = processor_.PieceToId(content);
    return has(id) && processor_.IdToPiece(id) == content ? std::optional<int32_t>(id) : std::nullopt;
  }

 private:
  bool has(int32_t token) const { return token >= 0 && token < processor_.GetPieceSize(); }

  std::string decode_all(const std::vector<int>& tokens) const {
    std::string text;
    check_status(processor_.Decode(tokens, &text), "decode tokens");
    return text;
  }

  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

bool has_sentencepiece() { return true; }

std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& model) {
  return std::make_unique<SentencePiece>(model);
}

}  // namespace cadre
