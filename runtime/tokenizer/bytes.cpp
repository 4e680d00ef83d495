// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/bytes.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>

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

namespace {

constexpr size_t kNumCharacters = 0x100 + 68;  // of which 68 are those of bytes that are not printable
constexpr int16_t kNoByte = -1;

constexpr bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

struct Alphabet {
  std::array<uint16_t, 256> character{};       // of a byte
  std::array<int16_t, kNumCharacters> byte{};  // of a character
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte.fill(kNoByte);
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const uint16_t character = is_printable(byte) ? static_cast<uint16_t>(byte) : next++;
    alphabet.character[static_cast<size_t>(byte)] = character;
    alphabet.byte[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string spell_byte(uint8_t byte) {
  const uint16_t character = kAlphabet.character[byte];
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0 | (character >> 6)), static_cast<char>(0x80 | (character & 0x3F))};
}

std::optional<std::string> bytes_spelled(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size(); ++i) {
    auto character = static_cast<unsigned char>(token[i]);
    size_t code = character;
    if (character >= 0x80) {  // all of the alphabet have two bytes then
      if (character < 0xC2 || character > 0xDF || i + 1 == token.size()) return std::nullopt;
      const auto second = static_cast<unsigned char>(token[++i]);
      if ((second & 0xC0) != 0x80) return std::nullopt;
      code = static_cast<size_t>(character & 0x1F) << 6 | (second & 0x3F);
    }
    if (code >= kNumCharacters || kAlphabet.byte[code] == kNoByte) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.byte[code]);
  }
  return bytes;
}

using nlohmann::json;

std::string byte_tokenizer_json() {
  json vocabulary = json::object();
  for (int byte = 0; byte < 256; ++byte) vocabulary[spell_byte(static_cast<uint8_t>(byte))] = byte;
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false},
                      {"vocab", vocabulary},
                      {"merges", json::array()}};
  const json file = {{"version", "1.0"},          {"truncation", nullptr},         {"padding", nullptr},
                     {"normalizer", nullptr},     {"added_tokens", json::array()}, {"pre_tokenizer", byte_level},
                     {"post_processor", nullptr}, {"decoder", byte_level},         {"model", model}};
  return file.dump(1) + "\n";
}

std::string byte_tokenizer_config() {
  const json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  return config.dump(2) + "\n";
}

}  // namespace cadre
