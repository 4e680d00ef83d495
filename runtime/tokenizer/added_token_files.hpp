// SPDX-License-Identifier: Apache-2.0
// Added tokens as files spell them.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "runtime/tokenizer/added_tokens.hpp"

namespace cadre {

// The list `added_tokens` of a tokenizer.json, in its order. Throws on what is wrong, too long or too much.
std::vector<AddedToken> added_tokens_of_tokenizer_json(const nlohmann::json& file);

// `added_tokens_decoder` of a tokenizer_config.json: an object of ids.
std::vector<AddedToken> added_tokens_of_tokenizer_config(const nlohmann::json& config);

// An added_tokens.json: an object of contents and ids.
std::vector<AddedToken> added_tokens_of_map(const nlohmann::json& map);

}  // namespace cadre
