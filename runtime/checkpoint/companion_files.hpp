// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "layers/model/config.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

// What lies in a checkpoint beside weights and config.json, so that this and other programs know its tokens: the files
// of the tokenizer, where its tokens are bytes too, and generation_config.json.
TokenizerFiles companion_files(const ModelConfig& model, TokenizerFiles tokenizer, bool tokens_are_bytes);

// generation_config.json, in which transformers keeps how text is generated: the tokens that end it, how tokens are drawn.
inline constexpr const char* kGenerationConfigFile = "generation_config.json";

// The tokens that end a text, none where there are none: eos_token_id, an id or a list of them, of generation_config.json
// or, where that is missing or says nothing of it, of config.json, as transformers chooses. Throws on ids outside of
// [0, vocab_size) and on what is no id.
std::vector<int32_t> end_tokens_of(const std::filesystem::path& checkpoint, int64_t vocab_size);

// How a checkpoint asks to sample. What is missing or null in the file is empty, and, where do_sample is not true, all but
// the penalty, which the likeliest token is chosen with too.
struct SamplingDefaults {
  std::optional<double> temperature;
  std::optional<int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> repetition_penalty;
};

// Of generation_config.json; empty without the file. Throws on values out of range, whatever do_sample says.
SamplingDefaults sampling_defaults_of(const std::filesystem::path& checkpoint);

// The generation_config.json that says what a config.json does of the tokens that begin and end a text.
std::string generation_config_of(const nlohmann::json& config);

// The generation_config.json of a trained model: what `kept`, the content of the file beside the tokenizer or "", says,
// with the end token of the model among its end tokens.
std::string generation_config_of(const ModelConfig& model, const std::string& kept);

}  // namespace cadre
