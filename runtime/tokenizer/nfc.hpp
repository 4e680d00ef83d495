// SPDX-License-Identifier: Apache-2.0
// The normalizer NFC of a tokenizer.json, as Qwen's have it: canonical composition (Unicode Standard Annex 15), by ICU.
#pragma once

#include <string>
#include <string_view>

namespace cadre {

// Whether ICU is built in.
bool has_nfc();

// Bytes that are not UTF-8 stay as they are. Throws without ICU.
std::string to_nfc(std::string_view text);

}  // namespace cadre
