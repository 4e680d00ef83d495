// SPDX-License-Identifier: Apache-2.0
// What the tests of tokenizer.json files share: a small tokenizer, its oracle, and texts that are hard to cut.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/naive_tokenizer.hpp"

namespace cadre::test {

inline const std::string kSampleText =
    "The expert's token moves to another rank, and back again. We'll say: it isn't 12345 but 67, don't they've "
    "seen?\n\n"
    "  Indented lines,   with  spaces;\tand tabs.\r\n专家混合模型把每个词元送给几个专家，专家再把结果送回来。"
    "エキスパート ça là déjà vu 😀😀👍🏽 → → 3.14159\n";

inline const NaiveTokenizer& naive_tokenizer() {
  static const NaiveTokenizer tokenizer(kSampleText + kSampleText, 120);
  return tokenizer;
}

inline std::vector<std::string> hard_texts() {
  return {"",
          " ",
          "   ",
          "\n",
          " \n \n  x",
          "a",
          "专家",
          "我们的专家 token 专家",
          "😀",
          "👩‍👩‍👧‍👦 🇩🇪",
          std::string("zero\0byte", 9),
          "\xFF\xFE",
          "half \xE4\xB8",
          "\xE4\xB8 and on",
          "\xF0\x9F\x98",
          "\x80\x80 expert \xC0\xAF",
          "tabs\tand\r\nlines\n",
          "'s 'S 'll'll 've'"};
}

// The error of a tokenizer.json with this content.
inline std::string refusal_of_tokenizer(const nlohmann::json& file) {
  return error_of([&] { make_tokenizer({{kTokenizerJsonFile, file.dump()}}, "tokenizer.json"); });
}

}  // namespace cadre::test
