// SPDX-License-Identifier: Apache-2.0
// Tokens that stand in a text as they are written, such as <|end|>: found before anything else is done with it, by the
// rules of the `tokenizers` package.
#pragma once

#include <nlohmann/json.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace cadre {

struct AddedToken {
  std::string content;  // not empty
  int32_t id;
  bool is_special = false;     // text shows nothing of it
  bool is_normalized = false;  // looked for in what the others leave
  bool single_word = false;    // only where no letter, digit or the like touches it
  bool lstrip = false;         // takes the white space before it
  bool rstrip = false;         // and behind it
};

class AddedTokens {
 public:
  using TakeText = std::function<void(std::string_view)>;
  using TakeToken = std::function<void(int32_t)>;

  // Of two with the same content the last one counts.
  void add(const AddedToken& token);

  bool empty() const { return tokens_.empty(); }

  // Cuts a text at the tokens in it, from left to right; of those that begin at one place the longest. `take_text` gets
  // what lies between them, never an empty part.
  void cut(std::string_view text, const TakeText& take_text, const TakeToken& take_token) const;

 private:
  struct Found {
    size_t begin;
    size_t end;
    size_t token;  // its place in tokens_
  };

  Found find(std::string_view text, size_t from) const;
  Found longest_at(std::string_view text, size_t begin) const;

  std::vector<AddedToken> tokens_;
  // A tree of bytes: from a node along a byte. The root is 0.
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<size_t> token_of_node_ = {SIZE_MAX};
  std::array<bool, 256> begins_{};  // whether one begins with the byte
};

// Added tokens as files spell them.

// The list `added_tokens` of a tokenizer.json, in its order. Throws on what is wrong, too long or too much.
std::vector<AddedToken> added_tokens_of_tokenizer_json(const nlohmann::json& file);

// `added_tokens_decoder` of a tokenizer_config.json: an object of ids.
std::vector<AddedToken> added_tokens_of_tokenizer_config(const nlohmann::json& config);

// An added_tokens.json: an object of contents and ids.
std::vector<AddedToken> added_tokens_of_map(const nlohmann::json& map);

}  // namespace cadre
