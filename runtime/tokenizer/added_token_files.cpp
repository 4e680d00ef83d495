// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/added_token_files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/json_fields.hpp"

namespace cadre {
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
