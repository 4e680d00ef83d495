// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "layers/model/config.hpp"
#include "runtime/tokenizer/open.hpp"

namespace cadre {

// What lies in a checkpoint beside weights and config.json, so that this and other programs know its tokens: the files
// of the tokenizer, where its tokens are bytes too, and generation_config.json.
TokenizerFiles companion_files(const ModelConfig& model, TokenizerFiles tokenizer, bool tokens_are_bytes);

}  // namespace cadre
