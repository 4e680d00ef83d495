// SPDX-License-Identifier: Apache-2.0
// What the fuzzers feed: any bytes as a file to one reader. A reader must take them or throw an input or environment
// Error of one line; whatever else happens (a crash, another exception, a lie about what was read) ends the program.
#pragma once

#include <cstdint>
#include <span>

namespace cadre::fuzz {

// A safetensors file: every byte of every tensor is touched, and the header is written and read once more.
void read_safetensors(std::span<const uint8_t> file);
// A config.json: a model that is accepted is counted, and written and read once more.
void read_config_json(std::span<const uint8_t> file);
// A token file of llm.c: first and last tokens are read, and all of a small one.
void read_token_bin(std::span<const uint8_t> file);
// A tokenizer.json: one that is accepted encodes a text of many kinds of characters, and decodes what it made of it.
void read_tokenizer_json(std::span<const uint8_t> file);

}  // namespace cadre::fuzz
