// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a tokenizer.model, by the SentencePiece library, where that was built in.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/tokenizer/added_tokens.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

// What transformers makes of a model beyond what the library does.
struct SentencePieceRules {
  // Which parts of a text, between added tokens, get a space in front.
  enum class Prefix { as_model, first, all, none };

  std::vector<AddedToken> added = {};  // beside the model; theirs are the ids behind it
  bool finds_special_pieces = false;   // <s> in a text is the token
  bool is_llama = false;               // LlamaTokenizer: no normalisation, no space before one
  Prefix prefix = Prefix::as_model;    // as_model if and only if not is_llama
};

bool has_sentencepiece();

// The content of a tokenizer.model. Throws on what is no model, on rules that do not fit it, and where SentencePiece is
// not built in.
std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& model, const SentencePieceRules& rules = {});

}  // namespace cadre
