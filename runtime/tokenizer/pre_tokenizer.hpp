// SPDX-License-Identifier: Apache-2.0
// The first half of a byte-level tokenizer: cuts a text in words; bytes are merged inside of words only. It is the
// `pre_tokenizer` of a tokenizer.json.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/regex.hpp"

namespace cadre {

class PreTokenizer {
 public:
  using TakeWord = std::function<void(std::string_view)>;

  // ByteLevel, or a Sequence of Split (Isolated or Removed), Digits and, at the end, ByteLevel. Throws on anything else.
  explicit PreTokenizer(const nlohmann::json& description);

  // Calls `take` with each word, in order; a word lives as long as the call.
  void each_word(std::string_view text, const TakeWord& take) const;

 private:
  // Cuts words at matches of an expression; without one, puts a space before a word that begins with none.
  struct Step {
    std::optional<Regex> regex;
    bool keeps_matches = true;
    bool keeps_others = true;  // what lies between matches
  };

  void add(const nlohmann::json& step, bool is_last);
  void add_split(const nlohmann::json& split);
  void add_byte_level(const nlohmann::json& byte_level);
  void run(size_t step, std::string_view word, const TakeWord& take) const;
  void cut(size_t step, std::string_view word, const TakeWord& take) const;

  std::vector<Step> steps_;
};

}  // namespace cadre
