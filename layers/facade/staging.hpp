// SPDX-License-Identifier: Apache-2.0
// Copies of a caller's rows in the memory that peers read (Exchange::memory), where the strategy has such memory and the rows
// fit. Rows that are not staged travel as messages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "comm/wire/format.hpp"

namespace cadre::moe {
inline namespace v1 {

class Staging {
 public:
  // The first `token_bytes` are for rows of tokens, the others for results of experts.
  Staging(std::span<std::byte> memory, size_t token_bytes)
      : tokens_(memory.first(std::min(token_bytes, memory.size()))), results_(memory.subspan(tokens_.size())) {}

  // The copy of `count` rows, or `rows`. Rows of one batch at a time: until free_tokens().
  Elements tokens(const Elements& rows, int64_t count, size_t row_bytes, bool& staged) {
    staged = !tokens_in_use_ && fits(tokens_, count, row_bytes);
    if (!staged) return rows;
    tokens_in_use_ = true;
    return copy(tokens_, rows, count, row_bytes);
  }
  void free_tokens() { tokens_in_use_ = false; }
  // The same for the results of a combine, until that is complete.
  Elements results(const Elements& rows, int64_t count, size_t row_bytes) const {
    return fits(results_, count, row_bytes) ? copy(results_, rows, count, row_bytes) : rows;
  }

 private:
  static bool fits(std::span<std::byte> area, int64_t count, size_t row_bytes) {
    return count > 0 && static_cast<size_t>(count) * row_bytes <= area.size();
  }
  static Elements copy(std::span<std::byte> area, const Elements& rows, int64_t count, size_t row_bytes) {
    if (rows.stride == row_bytes) {
      std::memcpy(area.data(), rows.base, static_cast<size_t>(count) * row_bytes);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(area.data() + static_cast<size_t>(i) * row_bytes, rows.at(i), row_bytes);
      }
    }
    return {area.data(), row_bytes};
  }

  std::span<std::byte> tokens_, results_;
  bool tokens_in_use_ = false;
};

}  // namespace v1
}  // namespace cadre::moe
