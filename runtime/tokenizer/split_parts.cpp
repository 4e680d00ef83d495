// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/split_parts.hpp"

namespace cadre {

bool SplitParts::joins_last(bool is_match) const {
  if (!has_last_) return false;
  switch (behavior_) {
    case SplitBehavior::contiguous: return is_match == last_is_match_;
    case SplitBehavior::merged_with_previous: return is_match && !last_is_match_;
    case SplitBehavior::merged_with_next: return !is_match && last_is_match_;
    default: return false;
  }
}

void SplitParts::add(size_t begin, size_t end, bool is_match) {
  if (behavior_ == SplitBehavior::removed && is_match) return;
  if (!joins_last(is_match)) {
    finish();
    begin_ = begin;
  }
  end_ = end;
  has_last_ = true;
  last_is_match_ = is_match;
}

void SplitParts::finish() {
  if (has_last_ && end_ > begin_) take_(text_.substr(begin_, end_ - begin_));
  has_last_ = false;
}

}  // namespace cadre
