// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/added_tokens.hpp"

namespace cadre {
namespace {

uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<unsigned char>(byte); }

}  // namespace

void AddedTokens::add(std::string_view content, int32_t token) {
  uint32_t node = 0;
  for (const char byte : content) {
    const auto [next, is_new] = edges_.try_emplace(edge(node, byte), static_cast<uint32_t>(token_of_node_.size()));
    if (is_new) token_of_node_.push_back(-1);
    node = next->second;
  }
  token_of_node_[node] = token;
  begins_[static_cast<unsigned char>(content.front())] = true;
}

AddedTokens::Found AddedTokens::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<unsigned char>(text[begin])]) continue;
    const Found found = longest_at(text, begin);
    if (found.length > 0) return found;
  }
  return {text.size(), 0, -1};
}

AddedTokens::Found AddedTokens::longest_at(std::string_view text, size_t begin) const {
  Found found = {begin, 0, -1};
  uint32_t node = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const auto next = edges_.find(edge(node, text[i]));
    if (next == edges_.end()) break;
    node = next->second;
    if (token_of_node_[node] >= 0) found = {begin, i + 1 - begin, token_of_node_[node]};
  }
  return found;
}

}  // namespace cadre
