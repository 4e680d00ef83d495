// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back. A tokenizer does not change, so any number of threads may use one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cadre {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // All ids are in [0, vocab_size()).
  virtual int64_t vocab_size() const = 0;

  // The text may hold any bytes. Throws where a part of it has no token.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  // The bytes of a token inside a text: not always whole characters. Special tokens, and ids that no token has, are empty.
  virtual std::string piece(int32_t token) const = 0;

  // A whole text, from its first token on.
  virtual std::string decode(std::span<const int32_t> tokens) const;

  // What is to be said of the tokens of a text, in one line; usually nothing.
  virtual std::string note_on(std::string_view) const { return ""; }

  // The id of a token by its content, such as <s>.
  virtual std::optional<int32_t> find(std::string_view content) const = 0;

  // What a model wants to see before the first token of a text; usually nothing or the token for "begin of text".
  const std::vector<int32_t>& prompt_prefix() const { return prompt_prefix_; }
  void set_prompt_prefix(std::vector<int32_t> tokens) { prompt_prefix_ = std::move(tokens); }

  // The token that ends a text, as the files of the tokenizer name it.
  std::optional<int32_t> end_of_text() const { return end_of_text_; }
  void set_end_of_text(std::optional<int32_t> token) { end_of_text_ = token; }

 private:
  std::vector<int32_t> prompt_prefix_;
  std::optional<int32_t> end_of_text_;
};

}  // namespace cadre
