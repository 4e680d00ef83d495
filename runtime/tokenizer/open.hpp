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

// The files of a tokenizer by the names that a checkpoint directory has for them, and what is in them.
using TokenizerFiles = std::map<std::string, std::string>;

// `where` is a file of one of the first two kinds, whatever its name, or a directory; of two in a directory
// tokenizer.model is taken, from which such a tokenizer.json was made, where SentencePiece is built in. "bytes", or a
// directory without any: no files.
TokenizerFiles read_tokenizer_files(const std::string& where);

// No files: bytes. Throws one line that begins with `where` on files that are damaged, foreign, or of a kind that is
// not built in.
std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerFiles& files, const std::string& where);

inline std::unique_ptr<Tokenizer> open_tokenizer(const std::string& where) {
  return make_tokenizer(read_tokenizer_files(where), where);
}

}  // namespace cadre
