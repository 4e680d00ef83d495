// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a tokenizer.model, by the SentencePiece library, where that was built in.
#pragma once

#include <memory>
#include <string>

#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

bool has_sentencepiece();

// The content of a tokenizer.model. Throws on what is no model, and where SentencePiece is not built in.
std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& model);

}  // namespace cadre
