// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a tokenizer.json with byte-level byte-pair encoding, as GPT-2, Llama 3 and DeepSeek have: added tokens
// are found as they stand, what lies between them is cut in words, and the bytes of each word are merged.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/added_tokens.hpp"
#include "runtime/tokenizer/pair_merges.hpp"
#include "runtime/tokenizer/pre_tokenizer.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

class ByteLevelBpe final : public Tokenizer {
 public:
  // The content of a tokenizer.json. Throws on what is wrong in it, and on what would give other tokens than meant.
  explicit ByteLevelBpe(const nlohmann::json& file);

  int64_t vocab_size() const override { return vocab_size_; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string piece(int32_t token) const override;
  std::string note_on(std::string_view text) const override;
  std::optional<int32_t> find(std::string_view content) const override;

 private:
  class Encoding;

  void read_vocabulary(const nlohmann::json& model);
  void read_merges(const nlohmann::json& model);
  void read_added_tokens(const nlohmann::json& file);
  void read_prompt_prefix(const nlohmann::json& post_processor);
  int32_t id_of(const std::string& spelled, size_t rule) const;
  std::vector<int32_t> tokens_of_word(std::string_view word) const;

  std::unordered_map<std::string, int32_t> ids_;     // by the token as the file spells it
  std::unordered_map<int32_t, std::string> pieces_;  // its bytes; of special tokens none
  std::array<std::optional<int32_t>, 256> bytes_;    // tokens of single bytes
  std::optional<int32_t> unknown_;                   // of other bytes
  bool to_nfc_first_ = false;
  bool whole_words_first_ = false;  // a word that is a token is not merged
  PreTokenizer pre_tokenizer_;
  PairMerges merges_;
  AddedTokens raw_tokens_;               // looked for first
  AddedTokens normalized_tokens_;        // then these
  std::vector<std::string> renumbered_;  // added tokens whose file says another id, with both
  int64_t vocab_size_ = 0;
};

}  // namespace cadre
