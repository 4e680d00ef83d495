// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/tiktoken.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr const char* kTiktokenHint = "a tiktoken.model has lines of a token in base64, a space and its rank";
constexpr size_t kMaxTokenBytes = 1024;
constexpr int64_t kMaxRank = int64_t{1} << 24;
constexpr int64_t kReservedIds = 256;  // ids of special tokens behind the ranks, whether they have names or not

// The words of tokenization_moonshot.py and tokenization_kimi.py, in which bytes are merged: Han characters by themselves, other
// letters with the character before them and an English ending behind them, up to three digits, marks, white space.
constexpr const char* kKimiWords =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

int value_of_base64(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

// RFC 4648, with padding. Nothing where it is something else.
std::optional<std::string> from_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : (text.ends_with("=") ? 1 : 0);
  std::string bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text.substr(0, text.size() - padding)) {
    const int value = value_of_base64(c);
    if (value < 0) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(bits >> num_bits & 0xff);
  }
  return bytes;
}

}  // namespace

Tiktoken::Tiktoken(std::string_view file, const std::vector<AddedToken>& added) : words_(kKimiWords) {
  read_ranks(file);
  add_merges();
  const auto num_ranks = static_cast<int64_t>(ids_.size());
  vocab_size_ = num_ranks + kReservedIds;
  for (const AddedToken& token : added) {
    CADRE_CHECK(token.id >= num_ranks,
                fmt::format("the special token of id {} has the id of one of {} ranks", token.id, num_ranks));
    added_.add(token);
    added_ids_[token.content] = token.id;
    if (!token.is_special) pieces_[token.id] = token.content;
    vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{token.id} + 1);
  }
}

void Tiktoken::read_ranks(std::string_view file) {
  bytes_.fill(-1);
  for (size_t number = 1; !file.empty(); ++number) {
    const size_t end = std::min(file.find('\n'), file.size());
    std::string_view line = file.substr(0, end);
    file.remove_prefix(std::min(end + 1, file.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = std::min(line.find(' '), line.size());
    const std::optional<std::string> token = from_base64(line.substr(0, space));
    const std::string_view digits = line.substr(std::min(space + 1, line.size()));
    int64_t rank = -1;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    const bool is_number = error == std::errc() && stop == digits.data() + digits.size();
    CADRE_CHECK(token && token->size() <= kMaxTokenBytes && is_number && rank >= 0 && rank < kMaxRank,
                fmt::format("tiktoken.model: line {} is no token with a rank", number), kTiktokenHint);
    const auto id = static_cast<int32_t>(rank);
    CADRE_CHECK(ids_.emplace(*token, id).second && pieces_.emplace(id, *token).second,
                fmt::format("tiktoken.model: line {} has a token or a rank for a second time", number), kTiktokenHint);
    if (token->size() == 1) bytes_[static_cast<uint8_t>(token->front())] = id;
  }
  const auto num_ranks = static_cast<int32_t>(ids_.size());
  for (int32_t id = 0; id < num_ranks; ++id) {
    CADRE_CHECK(pieces_.contains(id), fmt::format("tiktoken.model: of {} ranks {} is missing", num_ranks, id),
                kTiktokenHint);
  }
  for (size_t byte = 0; byte < bytes_.size(); ++byte) {
    CADRE_CHECK(bytes_[byte] >= 0, fmt::format("tiktoken.model: no token for the byte {:#04x}", byte), kTiktokenHint);
  }
}

// A pair is merged when the two together are a token, that of the lowest rank first.
void Tiktoken::add_merges() {
  for (const auto& [token, id] : ids_) {
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ids_.find(token.substr(0, cut));
      const auto right = ids_.find(token.substr(cut));
      if (left != ids_.end() && right != ids_.end()) merges_.add(left->second, right->second, id, /*rank=*/id);
    }
  }
}

void Tiktoken::append_word(std::string_view word, std::vector<int32_t>& tokens) const {
  if (const auto whole = ids_.find(std::string(word)); whole != ids_.end()) return tokens.push_back(whole->second);
  std::vector<int32_t> parts;
  for (const char byte : word) parts.push_back(bytes_[static_cast<uint8_t>(byte)]);
  parts = merges_.merge(std::move(parts));
  tokens.insert(tokens.end(), parts.begin(), parts.end());
}

std::vector<int32_t> Tiktoken::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  const auto take_text = [&](std::string_view part) {
    RegexMatches matches(words_, part);
    size_t done = 0;
    while (const auto match = matches.next()) {
      if (match->begin > done) append_word(part.substr(done, match->begin - done), tokens);  // bytes that are not UTF-8
      if (match->end > match->begin) append_word(part.substr(match->begin, match->end - match->begin), tokens);
      done = match->end;
    }
    if (done < part.size()) append_word(part.substr(done), tokens);
  };
  added_.cut(text, take_text, [&](int32_t token) { tokens.push_back(token); });
  return tokens;
}

std::string Tiktoken::piece(int32_t token) const {
  const auto found = pieces_.find(token);
  return found == pieces_.end() ? "" : found->second;
}

std::optional<int32_t> Tiktoken::find(std::string_view content) const {
  const std::string key(content);
  if (const auto added = added_ids_.find(key); added != added_ids_.end()) return added->second;
  const auto token = ids_.find(key);
  return token == ids_.end() ? std::nullopt : std::optional(token->second);
}

}  // namespace cadre
