// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a tiktoken.model, as Moonlight and Kimi K2 have it: lines of "base64 rank", where the rank of a token is its id
// and the order of merges. Special tokens come from the tokenizer_config.json beside it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/added_tokens.hpp"
#include "runtime/tokenizer/pair_merges.hpp"
#include "runtime/tokenizer/regex.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

class Tiktoken final : public Tokenizer {
 public:
  // `file` is the content of a tiktoken.model, `added` are the special tokens. Throws on what is wrong in them.
  Tiktoken(std::string_view file, const std::vector<AddedToken>& added);

  int64_t vocab_size() const override { return vocab_size_; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string piece(int32_t token) const override;
  std::optional<int32_t> find(std::string_view content) const override;

 private:
  void read_ranks(std::string_view file);
  void add_merges();
  void append_word(std::string_view word, std::vector<int32_t>& tokens) const;

  std::unordered_map<std::string, int32_t> ids_;     // by the bytes of a token
  std::unordered_map<int32_t, std::string> pieces_;  // its bytes; of special tokens none
  std::array<int32_t, 256> bytes_{};                 // tokens of single bytes
  PairMerges merges_;
  Regex words_;
  AddedTokens added_;
  std::unordered_map<std::string, int32_t> added_ids_;
  int64_t vocab_size_ = 0;
};

}  // namespace cadre
