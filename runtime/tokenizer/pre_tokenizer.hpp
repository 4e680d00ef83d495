// SPDX-License-Identifier: Apache-2.0
// The first half of a byte-level tokenizer: cuts a text in words; bytes are merged inside of words only. It is the
// `pre_tokenizer` of a tokenizer.json.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/regex.hpp"

namespace cadre {

// What a Split does with the parts of a text that match and with those between them.
// removed: matches go away. isolated: each part is a word. contiguous: neighbours of one kind are one word.
// merged_with_previous, merged_with_next: a match and the part between matches before or behind it are one word.
enum class SplitBehavior { removed, isolated, contiguous, merged_with_previous, merged_with_next };

class PreTokenizer {
 public:
  using TakeWord = std::function<void(std::string_view)>;

  // ByteLevel, or a Sequence that ends with it and has before it Split, Digits, Punctuation, WhitespaceSplit,
  // CharDelimiterSplit, BertPreTokenizer and Sequences of these. Throws on anything else.
  explicit PreTokenizer(const nlohmann::json& description);

  // Calls `take` with each word, in order; a word lives as long as the call.
  void each_word(std::string_view text, const TakeWord& take) const;

 private:
  // Cuts words at matches of an expression; without one, puts a space before a word that begins with none.
  struct Step {
    std::optional<Regex> regex;
    SplitBehavior behavior = SplitBehavior::isolated;
    bool invert = false;  // what lies between matches counts as the match
  };

  void add(const nlohmann::json& step, bool is_last, size_t depth);
  void add_sequence(const nlohmann::json& sequence, bool is_last, size_t depth);
  void add_split(const nlohmann::json& split);
  void add_byte_level(const nlohmann::json& byte_level);
  void run(size_t step, std::string_view word, const TakeWord& take) const;
  static void cut(const Step& step, std::string_view word, const TakeWord& take);

  std::vector<Step> steps_;
};

}  // namespace cadre
