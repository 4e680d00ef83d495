// SPDX-License-Identifier: Apache-2.0
// Which tokenizer there is, by name or by the files of a directory.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

inline constexpr const char* kByteTokenizer = "bytes";

inline constexpr const char* kTokenizerModelFile = "tokenizer.model";         // of SentencePiece
inline constexpr const char* kTokenizerJsonFile = "tokenizer.json";           // byte-level byte-pair encoding
inline constexpr const char* kTokenizerConfigFile = "tokenizer_config.json";  // beside one: which token begins a text

inline constexpr const char* kMoreTemplatesFolder = "additional_chat_templates";  // beside one: *.jinja
inline constexpr const char* kAddedTokensFile = "added_tokens.json";              // beside one: contents and ids

// The files of a tokenizer by the names that a checkpoint directory has for them, and what is in them.
using TokenizerFiles = std::map<std::string, std::string>;

// `where` is a file of one of the first two kinds, whatever its name, or a directory. What belongs to it in the same
// folder comes with it: further descriptions, chat templates and generation_config.json. "bytes", a directory without
// any, and the file of byte_tokenizer_json: no files.
TokenizerFiles read_tokenizer_files(const std::string& where);

// The name of the file that tokens come from; nullptr for none. Of two it is tokenizer.model, from which such a
// tokenizer.json was made, where SentencePiece is built in.
const char* main_file_of(const TokenizerFiles& files);

// No files: bytes. Throws one line that begins with `where` on files that are damaged, foreign, or of a kind that is
// not built in.
std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerFiles& files, const std::string& where);

inline std::unique_ptr<Tokenizer> open_tokenizer(const std::string& where) {
  return make_tokenizer(read_tokenizer_files(where), where);
}

}  // namespace cadre
