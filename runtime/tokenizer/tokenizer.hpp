// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back. A tokenizer does not change, so any number of threads may use one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
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

  // The tokens that begin and end a text, as the files of the tokenizer name them.
  std::optional<int32_t> begin_of_text() const { return begin_of_text_; }
  void set_begin_of_text(std::optional<int32_t> token) { begin_of_text_ = token; }
  std::optional<int32_t> end_of_text() const { return end_of_text_; }
  void set_end_of_text(std::optional<int32_t> token) { end_of_text_ = token; }

 private:
  std::vector<int32_t> prompt_prefix_;
  std::optional<int32_t> begin_of_text_;
  std::optional<int32_t> end_of_text_;
};

// Which tokenizer there is, by name or by the files of a directory.
inline constexpr const char* kByteTokenizer = "bytes";

inline constexpr const char* kTokenizerModelFile = "tokenizer.model";         // of SentencePiece
inline constexpr const char* kTokenizerJsonFile = "tokenizer.json";           // byte-level byte-pair encoding
inline constexpr const char* kTiktokenFile = "tiktoken.model";                // of Moonlight and Kimi
inline constexpr const char* kTokenizerConfigFile = "tokenizer_config.json";  // beside one: which token begins a text

inline constexpr const char* kMoreTemplatesFolder = "additional_chat_templates";  // beside one: *.jinja
inline constexpr const char* kAddedTokensFile = "added_tokens.json";              // beside one: contents and ids

// The files of a tokenizer by the names that a checkpoint directory has for them, and what is in them.
using TokenizerFiles = std::map<std::string, std::string>;

// `where` is a file of one of the first three kinds, whatever its name, or a directory. What belongs to it in the same
// folder comes with it: further descriptions, chat templates and generation_config.json. "bytes", a directory without
// any, and the file of byte_tokenizer_json: no files.
TokenizerFiles read_tokenizer_files(const std::string& where);

// The name of the file that tokens come from; nullptr for none. Of several it is tokenizer.model, from which such a
// tokenizer.json was made, where SentencePiece is built in; then tokenizer.json.
const char* main_file_of(const TokenizerFiles& files);

// No files: bytes. Throws one line that begins with `where` on files that are damaged, foreign, or of a kind that is
// not built in.
std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerFiles& files, const std::string& where);

inline std::unique_ptr<Tokenizer> open_tokenizer(const std::string& where) {
  return make_tokenizer(read_tokenizer_files(where), where);
}

}  // namespace cadre
