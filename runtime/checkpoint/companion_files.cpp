// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/companion_files.hpp"

#include "runtime/checkpoint/generation_config.hpp"
#include "runtime/tokenizer/byte_tokenizer_file.hpp"

namespace cadre {

TokenizerFiles companion_files(const ModelConfig& model, TokenizerFiles tokenizer, bool tokens_are_bytes) {
  TokenizerFiles files = std::move(tokenizer);
  if (tokens_are_bytes) {
    files[kTokenizerJsonFile] = byte_tokenizer_json();
    files[kTokenizerConfigFile] = byte_tokenizer_config();
  }
  std::string& generation = files[kGenerationConfigFile];
  generation = generation_config_of(model, generation);
  return files;
}

}  // namespace cadre
