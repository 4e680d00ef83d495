// SPDX-License-Identifier: Apache-2.0
// Tokens that stand in a text as they are written, such as <|end|>: found before anything else is done with it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace cadre {

class AddedTokens {
 public:
  // `content` is not empty. Of two with the same content the last one counts.
  void add(std::string_view content, int32_t token);

  struct Found {
    size_t begin;
    size_t length;
    int32_t token;
  };
  // The first one in text[from...], and of those that begin there the longest; length 0 and begin = text.size() for none.
  Found find(std::string_view text, size_t from) const;

 private:
  Found longest_at(std::string_view text, size_t begin) const;

  // A tree of bytes: from a node along a byte. The root is 0.
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> token_of_node_ = {-1};
  std::array<bool, 256> begins_{};  // whether one begins with the byte
};

}  // namespace cadre
