// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/added_tokens.hpp"

#include <algorithm>

#include "runtime/tokenizer/regex.hpp"
#include "runtime/tokenizer/utf8.hpp"

namespace cadre {
namespace {

constexpr size_t kNone = SIZE_MAX;

uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<unsigned char>(byte); }

// The characters at the two ends of a text; empty where it is.
std::string_view first_character(std::string_view text) {
  size_t length = std::min<size_t>(1, text.size());
  while (length < text.size() && is_utf8_continuation(text[length])) ++length;
  return text.substr(0, length);
}

std::string_view last_character(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0 && is_utf8_continuation(text[--begin])) continue;
  return text.substr(begin);
}

bool matches(const Regex& regex, std::string_view character) {
  return RegexMatches(regex, character).next().has_value();
}

// \w of the `regex` package of Rust.
bool is_word(std::string_view character) {
  static const Regex regex(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])");
  return matches(regex, character);
}

bool is_space(std::string_view character) {
  static const Regex regex(R"(\p{White_Space})");
  return matches(regex, character);
}

}  // namespace

void AddedTokens::add(const AddedToken& token) {
  uint32_t node = 0;
  for (const char byte : token.content) {
    const auto [next, is_new] = edges_.try_emplace(edge(node, byte), static_cast<uint32_t>(token_of_node_.size()));
    if (is_new) token_of_node_.push_back(kNone);
    node = next->second;
  }
  token_of_node_[node] = tokens_.size();
  tokens_.push_back(token);
  begins_[static_cast<unsigned char>(token.content.front())] = true;
}

void AddedTokens::cut(std::string_view text, const TakeText& take_text, const TakeToken& take_token) const {
  size_t done = 0;
  for (size_t from = 0; from < text.size();) {
    auto [begin, end, index] = find(text, from);
    if (index == kNone) break;
    from = end;
    const AddedToken& token = tokens_[index];
    if (token.single_word &&
        (is_word(last_character(text.substr(0, begin))) || is_word(first_character(text.substr(end))))) {
      continue;
    }
    if (token.lstrip) {
      while (begin > done && is_space(last_character(text.substr(0, begin)))) {
        begin -= last_character(text.substr(0, begin)).size();
      }
    }
    if (token.rstrip) {
      while (end < text.size() && is_space(first_character(text.substr(end)))) {
        end += first_character(text.substr(end)).size();
      }
    }
    if (begin > done) take_text(text.substr(done, begin - done));
    take_token(token.id);
    done = end;  // white space that the token took may begin the next one, too
  }
  if (done < text.size()) take_text(text.substr(done));
}

AddedTokens::Found AddedTokens::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<unsigned char>(text[begin])]) continue;
    const Found found = longest_at(text, begin);
    if (found.token != kNone) return found;
  }
  return {text.size(), text.size(), kNone};
}

AddedTokens::Found AddedTokens::longest_at(std::string_view text, size_t begin) const {
  Found found = {begin, begin, kNone};
  uint32_t node = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const auto next = edges_.find(edge(node, text[i]));
    if (next == edges_.end()) break;
    node = next->second;
    if (token_of_node_[node] != kNone) found = {begin, i + 1, token_of_node_[node]};
  }
  return found;
}

}  // namespace cadre
