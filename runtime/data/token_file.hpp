// SPDX-License-Identifier: Apache-2.0
// Token files of llm.c: 256 int32 (magic, version, number of tokens, zeros), then the ids. Magic 20240520 with version
// 1 holds uint16 ids (GPT-2), magic 20240801 with version 7 uint32 ids (Llama 3). Little-endian.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/data/token_source.hpp"

namespace cadre {

// Whether the first four bytes are one of the two magics.
bool is_token_file(const std::string& path);

// Keeps the file open; tokens are read when they are wanted. A wrong header, or a size that is not exactly what the header
// says, throws.
TokenSource open_token_file(const std::string& path, int64_t vocab_size);

}  // namespace cadre
