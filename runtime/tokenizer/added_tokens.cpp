// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/added_tokens.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/json_fields.hpp"
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

namespace {

using nlohmann::json;

constexpr size_t kMaxContent = 256;  // bytes
constexpr size_t kMaxBytes = size_t{1} << 20;

void check_sizes(const std::vector<AddedToken>& tokens, const char* where) {
  size_t bytes = 0;
  for (const AddedToken& token : tokens) {
    bytes += token.content.size();
    CADRE_CHECK(!token.content.empty() && token.content.size() <= kMaxContent && bytes <= kMaxBytes,
                fmt::format("{}: a content of {} bytes, allowed: 1 to {}, and {} in all", where, token.content.size(),
                            kMaxContent, kMaxBytes));
  }
}

// `normalized` is by default what `special` is not.
AddedToken token_of(const json& token, const char* where, bool is_normalized_by_default) {
  AddedToken added;
  added.content = text(token, where, "content", "");
  added.is_special = flag(token, where, "special", false);
  added.is_normalized = flag(token, where, "normalized", is_normalized_by_default && !added.is_special);
  added.single_word = flag(token, where, "single_word", false);
  added.lstrip = flag(token, where, "lstrip", false);
  added.rstrip = flag(token, where, "rstrip", false);
  return added;
}

}  // namespace

std::vector<AddedToken> added_tokens_of_tokenizer_json(const json& file) {
  std::vector<AddedToken> tokens;
  if (!file.is_object() || !file.contains("added_tokens")) return tokens;
  for (const json& token : field(file, "", "added_tokens", json::value_t::array)) {
    tokens.push_back(token_of(token, "added_tokens", false));
    check_sizes({tokens.back()}, "added_tokens");
    const std::string& content = tokens.back().content;
    tokens.back().id = token_id(token.value("id", json()), fmt::format("added_tokens: the id of {}", quoted(content)));
  }
  check_sizes(tokens, "added_tokens");
  return tokens;
}

std::vector<AddedToken> added_tokens_of_tokenizer_config(const json& config) {
  constexpr const char* kName = "added_tokens_decoder";
  std::vector<AddedToken> tokens;
  if (!config.contains(kName) || config[kName].is_null()) return tokens;
  for (const auto& [id, token] : field(config, "", kName, json::value_t::object).items()) {
    tokens.push_back(token_of(token, kName, true));
    int64_t number = -1;
    const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), number);
    const bool is_number = error == std::errc() && end == id.data() + id.size();
    tokens.back().id = token_id(is_number ? json(number) : json(id), fmt::format("{}: an id", kName));
  }
  check_sizes(tokens, kName);
  std::ranges::sort(tokens, {}, &AddedToken::id);
  return tokens;
}

std::vector<AddedToken> added_tokens_of_map(const json& map) {
  CADRE_CHECK(map.is_object(), fmt::format("added_tokens.json is {}, allowed: an object", map.type_name()));
  std::vector<AddedToken> tokens;
  for (const auto& [content, id] : map.items()) {
    tokens.push_back(
        {.content = content, .id = token_id(id, fmt::format("added_tokens.json: the id of {}", quoted(content)))});
  }
  check_sizes(tokens, "added_tokens.json");
  std::ranges::sort(tokens, {}, &AddedToken::id);
  return tokens;
}

}  // namespace cadre
