// SPDX-License-Identifier: Apache-2.0
// A small byte-level tokenizer, learned from a text, and its tokens by the shortest code that can find them: the oracle
// of what runtime/tokenizer does. Its words are those of GPT-2, cut by hand over code points.
#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace cadre::test {

inline std::string utf8(uint32_t c) {
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  return {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
          static_cast<char>(0x80 | (c & 63))};
}

// As OpenAI's GPT-2 lists them: printable bytes first, then the rest from 256 on.
inline std::vector<std::string> byte_spellings() {
  std::vector<std::string> spellings(256);
  const auto keep = [&](int first, int last) {
    for (int b = first; b <= last; ++b) spellings[static_cast<size_t>(b)] = utf8(static_cast<uint32_t>(b));
  };
  keep('!', '~'), keep(0xA1, 0xAC), keep(0xAE, 0xFF);
  uint32_t next = 256;
  for (std::string& spelling : spellings) {
    if (spelling.empty()) spelling = utf8(next++);
  }
  return spellings;
}

class NaiveTokenizer {
 public:
  using Word = std::vector<std::string>;

  // Learns `num_merges` from a text, most frequent pair first, of equal ones the first in the alphabet.
  NaiveTokenizer(const std::string& text, size_t num_merges) {
    for (const std::string& spelling : spellings_) add_token(spelling);
    std::vector<Word> words = spelled_words(text);
    while (merges_.size() < num_merges) {
      std::map<std::pair<std::string, std::string>, int> counts;
      for (const Word& word : words) {
        for (size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
      }
      const auto most = std::ranges::max_element(counts, {}, [](const auto& entry) { return entry.second; });
      merges_.push_back(most->first);
      add_token(most->first.first + most->first.second);
      for (Word& word : words) apply(merges_.back(), word);
    }
  }

  // Rule by rule, in their order, each wherever it applies from left to right.
  std::vector<int32_t> encode(const std::string& text) const {
    std::vector<int32_t> tokens;
    for (Word& word : spelled_words(text)) {
      for (const auto& merge : merges_) apply(merge, word);
      for (const std::string& token : word) tokens.push_back(ids_.at(token));
    }
    return tokens;
  }

  size_t vocab_size() const { return ids_.size(); }

  // The tokenizer.json of it, with merges in the older or the newer spelling.
  nlohmann::json file(bool merges_are_lists = false) const {
    nlohmann::json merges = nlohmann::json::array();
    for (const auto& [left, right] : merges_) {
      merges.push_back(merges_are_lists ? nlohmann::json{left, right} : nlohmann::json(left + " " + right));
    }
    return {{"version", "1.0"},
            {"added_tokens", nlohmann::json::array()},
            {"normalizer", nullptr},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model", {{"type", "BPE"}, {"vocab", ids_}, {"merges", merges}}}};
  }

 private:
  enum class Kind { letter, digit, space, other };

  void add_token(const std::string& token) { ids_.emplace(token, static_cast<int32_t>(ids_.size())); }

  static void apply(const std::pair<std::string, std::string>& merge, Word& word) {
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      if (word[i] != merge.first || word[i + 1] != merge.second) continue;
      word[i] += word[i + 1];
      word.erase(word.begin() + static_cast<ptrdiff_t>(i) + 1);
    }
  }

  // Enough of Unicode for the texts of the tests: ASCII, Latin-1 letters, kana and Chinese; what is left is "other".
  static Kind kind_of(const std::string& character) {
    const auto byte = static_cast<unsigned char>(character[0]);
    if (character.size() == 1) {
      if (std::isalpha(byte)) return Kind::letter;
      if (std::isdigit(byte)) return Kind::digit;
      return std::isspace(byte) ? Kind::space : Kind::other;
    }
    if (character == "\u3000" || character == "\u00A0") return Kind::space;
    const bool is_letter =
        byte == 0xC3 || (byte >= 0xE4 && byte <= 0xE9) || (character > "\u3040" && character < "\u30FB");
    return is_letter ? Kind::letter : Kind::other;
  }

  static std::vector<std::string> characters(const std::string& text) {
    std::vector<std::string> all;
    for (const char c : text) {
      if ((static_cast<unsigned char>(c) & 0xC0) == 0x80) {
        all.back() += c;
      } else {
        all.emplace_back(1, c);
      }
    }
    return all;
  }

  // 's 't 're 've 'm 'll 'd, then an optional space and a run of one kind, then white space.
  static std::vector<std::string> words_of(const std::string& text) {
    const std::vector<std::string> all = characters(text);
    std::vector<std::string> words;
    for (size_t i = 0; i < all.size();) {
      size_t end = i + contraction(all, i);
      if (end == i) {
        const size_t first = i + (all[i] == " " && i + 1 < all.size() && kind_of(all[i + 1]) != Kind::space ? 1 : 0);
        const Kind kind = kind_of(all[first]);
        for (end = first; end < all.size() && kind_of(all[end]) == kind;) ++end;
        // The last space of several goes with what follows.
        if (kind == Kind::space && end < all.size() && end - i > 1) --end;
      }
      words.emplace_back();
      while (i < end) words.back() += all[i++];
    }
    return words;
  }

  static size_t contraction(const std::vector<std::string>& all, size_t i) {
    if (all[i] != "'" || i + 1 >= all.size()) return 0;
    const std::string two = all[i + 1] + (i + 2 < all.size() ? all[i + 2] : "");
    if (two == "re" || two == "ve" || two == "ll") return 3;
    return std::string("stmd").find(all[i + 1]) != std::string::npos ? 2 : 0;
  }

  std::vector<Word> spelled_words(const std::string& text) const {
    std::vector<Word> words;
    for (const std::string& word : words_of(text)) {
      words.emplace_back();
      for (const char byte : word) words.back().push_back(spellings_[static_cast<unsigned char>(byte)]);
    }
    return words;
  }

  std::vector<std::string> spellings_ = byte_spellings();
  std::map<std::string, int32_t> ids_;
  std::vector<std::pair<std::string, std::string>> merges_;
};

}  // namespace cadre::test
