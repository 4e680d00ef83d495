// SPDX-License-Identifier: Apache-2.0
// generation_config.json, in which transformers keeps the tokens that end a text.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "layers/model/config.hpp"

namespace cadre {

inline constexpr const char* kGenerationConfigFile = "generation_config.json";

// The tokens that end a text, none where there are none: eos_token_id, an id or a list of them, of generation_config.json
// or, where that is missing or says nothing of it, of config.json, as transformers chooses. Throws on ids outside of
// [0, vocab_size) and on what is no id.
std::vector<int32_t> end_tokens_of(const std::filesystem::path& checkpoint, int64_t vocab_size);

// The generation_config.json that says what a config.json does of the tokens that begin and end a text.
std::string generation_config_of(const nlohmann::json& config);

// The generation_config.json of a trained model: what `kept`, the content of the file beside the tokenizer or "", says,
// with the end token of the model among its end tokens.
std::string generation_config_of(const ModelConfig& model, const std::string& kept);

}  // namespace cadre
