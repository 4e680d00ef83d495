// SPDX-License-Identifier: Apache-2.0
// A long run of token ids, stored in one, two or four bytes each, read as int32.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>

namespace cadre {

// A cheap, copyable view that shares what owns its memory (a text, a mapped file). Ids are checked when they are read,
// so opening a large file costs nothing.
class TokenSource {
 public:
  using Ids = std::variant<const uint8_t*, const uint16_t*, const uint32_t*>;

  // `name` stands in messages.
  TokenSource(std::string name, std::shared_ptr<const void> owner, Ids ids, int64_t num_tokens, int64_t vocab_size);

  int64_t num_tokens() const { return num_tokens_; }
  const std::string& name() const { return name_; }

  // Copies tokens [first, first + out.size()). An id outside [0, vocab_size) throws.
  void read(int64_t first, std::span<int32_t> out) const;

  TokenSource slice(int64_t first, int64_t count) const;

 private:
  std::string name_;
  std::shared_ptr<const void> owner_;
  Ids ids_;
  int64_t first_token_ = 0;  // of this slice, in the whole
  int64_t num_tokens_;
  int64_t vocab_size_;
};

}  // namespace cadre
