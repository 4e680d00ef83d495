// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/byte_tokenizer_file.hpp"

#include <nlohmann/json.hpp>

#include "runtime/tokenizer/byte_alphabet.hpp"

namespace cadre {

using nlohmann::json;

std::string byte_tokenizer_json() {
  json vocabulary = json::object();
  for (int byte = 0; byte < 256; ++byte) vocabulary[spell_byte(static_cast<uint8_t>(byte))] = byte;
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false},
                      {"vocab", vocabulary},
                      {"merges", json::array()}};
  const json file = {{"version", "1.0"},          {"truncation", nullptr},         {"padding", nullptr},
                     {"normalizer", nullptr},     {"added_tokens", json::array()}, {"pre_tokenizer", byte_level},
                     {"post_processor", nullptr}, {"decoder", byte_level},         {"model", model}};
  return file.dump(1) + "\n";
}

std::string byte_tokenizer_config() {
  const json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  return config.dump(2) + "\n";
}

}  // namespace cadre
