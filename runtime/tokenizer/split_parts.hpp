// SPDX-License-Identifier: Apache-2.0
// What a Split of a tokenizer.json does with the parts of a text that match and with those between them.
#pragma once

#include <cstddef>
#include <functional>
#include <string_view>

namespace cadre {

// removed: matches go away. isolated: each part is a word. contiguous: neighbours of one kind are one word.
// merged_with_previous, merged_with_next: a match and the part between matches before or behind it are one word.
enum class SplitBehavior { removed, isolated, contiguous, merged_with_previous, merged_with_next };

class SplitParts {
 public:
  using TakeWord = std::function<void(std::string_view)>;

  // `text` and `take` must outlive it.
  SplitParts(SplitBehavior behavior, std::string_view text, const TakeWord& take)
      : behavior_(behavior), text_(text), take_(take) {}

  // The next part, text[begin, end). Parts that match may be empty.
  void add(size_t begin, size_t end, bool is_match);

  // Behind the last part.
  void finish();

 private:
  bool joins_last(bool is_match) const;

  SplitBehavior behavior_;
  std::string_view text_;
  const TakeWord& take_;
  bool has_last_ = false;  // a word that further parts may join
  bool last_is_match_ = false;
  size_t begin_ = 0;
  size_t end_ = 0;
};

}  // namespace cadre
