// SPDX-License-Identifier: Apache-2.0
// Tokens of bytes as other programs read them.
#pragma once

#include <string>

namespace cadre {

// A tokenizer.json of 256 tokens: the id of each is the value of its byte, and nothing is merged.
std::string byte_tokenizer_json();

// The tokenizer_config.json beside it, by which the AutoTokenizer of transformers knows what to open.
std::string byte_tokenizer_config();

}  // namespace cadre
