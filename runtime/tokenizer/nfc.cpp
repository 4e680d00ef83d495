// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/nfc.hpp"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>

#include <algorithm>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/utf8.hpp"

namespace cadre {

bool has_nfc() { return true; }

std::string to_nfc(std::string_view text) {
  const auto is_ascii = [](char byte) { return (static_cast<unsigned char>(byte) & 0x80) == 0; };
  if (std::ranges::all_of(text, is_ascii)) return std::string(text);
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = icu::Normalizer2::getNFCInstance(status);
  std::string result;
  icu::StringByteSink<std::string> sink(&result);
  while (!text.empty() && U_SUCCESS(status)) {
    const size_t length = utf8_length(text);
    if (length > 0) {
      const icu::StringPiece part(text.data(), static_cast<int32_t>(length));
      normalizer->normalizeUTF8(0, part, sink, nullptr, status);
    } else {
      result += text.front();
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  CADRE_CHECK(U_SUCCESS(status), fmt::format("ICU: {}", u_errorName(status)), "the text could not be normalised");
  return result;
}

}  // namespace cadre
