// SPDX-License-Identifier: Apache-2.0
// How a text is cut into words: expressions, and the steps of a pre-tokenizer.
#include "runtime/tokenizer/pre_tokenizer.hpp"

#include <gtest/gtest.h>

#include "runtime/tokenizer/byte_level_bpe.hpp"
#include "runtime/tokenizer/regex.hpp"
#include "tests/support/tokenizer_samples.hpp"

namespace cadre::pre_tokenizer_test {
namespace {

using nlohmann::json;
using test::hard_texts;
using test::naive_tokenizer;

// The words of DeepSeek-V3: three digits at a time, Chinese apart from all else, a mark with the letters behind it.
TEST(ByteLevelBpe, cuts_at_a_sequence_of_expressions) {
  json file = naive_tokenizer().file();
  file["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex": "[一-龥぀-ゟ゠-ヿ]+"}, "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex": "[!-/:-~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"},
     "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})");
  const auto words = [](const json& pre_tokenizer, const std::string& text) {
    std::vector<std::string> found;
    PreTokenizer(pre_tokenizer).each_word(text, [&](std::string_view word) { found.emplace_back(word); });
    return found;
  };
  using Words = std::vector<std::string>;
  EXPECT_EQ(words(file["pre_tokenizer"], "It costs 1234567元, 专家say:no  more\n\n end"),
            (Words{"It", " costs", " ", "123", "456", "7", "元", ",", " ", "专家", "say", ":no", " ", " more", "\n\n",
                   " end"}));
  const ByteLevelBpe tokenizer(file);
  for (const std::string& text : hard_texts()) EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << text;

  const json byte_level = {{"type", "ByteLevel"}, {"use_regex", false}, {"add_prefix_space", false}};
  const auto with = [&](json step) -> json {
    return {{"type", "Sequence"}, {"pretokenizers", {std::move(step), byte_level}}};
  };
  EXPECT_EQ(words(with({{"type", "Digits"}, {"individual_digits", true}}), "a12b"), (Words{"a", "1", "2", "b"}));
  EXPECT_EQ(words(with({{"type", "Digits"}}), "a12b"), (Words{"a", "12", "b"}));
  const auto split = [&](const char* behavior, bool invert) {
    return with({{"type", "Split"}, {"pattern", {{"String", "."}}}, {"behavior", behavior}, {"invert", invert}});
  };
  EXPECT_EQ(words(split("Isolated", false), "a.b.."), (Words{"a", ".", "b", ".", "."}));
  EXPECT_EQ(words(split("Removed", false), "a.b.."), (Words{"a", "b"}));
  EXPECT_EQ(words(split("Removed", true), "a.b.."), (Words{".", ".", "."}));
  EXPECT_EQ(words({{"type", "ByteLevel"}}, "a b"), (Words{" a", " b"}));
}

TEST(Regex, finds_matches_as_tokenizer_files_mean_them) {
  const auto matches = [](const char* pattern, const std::string& text) {
    const Regex regex(pattern);
    RegexMatches found(regex, text);
    std::vector<std::pair<size_t, size_t>> ranges;
    while (const auto range = found.next()) ranges.emplace_back(range->begin, range->end);
    return ranges;
  };
  using Ranges = std::vector<std::pair<size_t, size_t>>;
  EXPECT_EQ(matches("\\p{L}+", "ab 专家"), (Ranges{{0, 2}, {3, 9}}));
  EXPECT_EQ(matches("\\p{L}+", "ab\xFF专"), (Ranges{{0, 2}, {3, 6}}));
  EXPECT_EQ(matches("b$", "b\nb"), (Ranges{{0, 1}, {2, 3}}));
  EXPECT_EQ(matches("x*", "a专x"), (Ranges{{0, 0}, {1, 1}, {4, 5}}));
  EXPECT_EQ(matches("\\s+", "\u3000 \u00A0"), (Ranges{{0, 6}}));
}

using Words = std::vector<std::string>;

Words words_of(std::vector<json> list, const std::string& text) {
  list.push_back({{"type", "ByteLevel"}, {"use_regex", false}, {"add_prefix_space", false}});
  Words found;
  PreTokenizer({{"type", "Sequence"}, {"pretokenizers", list}}).each_word(text, [&](std::string_view word) {
    found.emplace_back(word);
  });
  return found;
}

json split(const json& pattern, const char* behavior, bool invert) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", invert}};
}

// What tokenizers 0.23.3 makes of each: pre_tokenizers.Split(Regex(pattern), "removed", invert=True).
TEST(Regex, means_what_it_means_to_tokenizers) {
  struct Case {
    const char* pattern;
    const char* text;
    Words matches;
  };
  const std::vector<Case> cases = {
      {R"(\p{Han}+)", "你好。世界、々〆", {"你好", "世界", "々"}},
      {R"([\p{L}&&[^\p{Han}]]+)", "ab你好cα", {"ab", "cα"}},
      {R"(\w+)", "naïve_1 \u203Fa\u00B7²\u2177\u2460", {"naïve_1", "\u203Fa", "²\u2177"}},
      {R"(\b)", "a b", {}},
      {R"(\h+)", "xyz0aF g\t", {"0aF"}},
      {R"([[:alpha:]]+)", "aé1你²_", {"aé", "你"}},
      {R"([[:punct:]]+)", "$+<a>.。", {"$+<", ">.。"}},
      {R"([\]a[:alpha:][:punct:]&&[^.]]+)", "$+<a>.。", {"$+<a>", "。"}},
      {R"([^[:punct:]]+)", "$a.", {"a"}},
      {R"(\p{Word}+)", "a²-", {"a²"}},
      {R"((?m:.)+)", "a\nb", {"a\nb"}},
      {R"(.+)", "a\nb\r", {"a", "b\r"}},
      {R"(a{1,2}+b?)", "aaab", {"aaab"}},
      {R"(a+b$)", "ab\nab", {"ab", "ab"}},
      {R"((?i:ſ|k))", "sSK\u212A", {"s", "S", "K", "\u212A"}},
      {R"(\R)", "a\r\nb\n", {"\r\n", "\n"}},
      {R"(\X)", "e\u0301👩\u200D👧x", {"e\u0301", "👩\u200D👧", "x"}},
      {R"((?<=\p{L})\p{N})", "a1b22", {"1", "2"}},
      {R"([a-w&&[^c-g]z])", "abcz", {"a", "b"}},
      {R"(\s+(?!\S)|\s+)", "a   b  ", {"  ", " ", "  "}},
  };
  for (const auto& [pattern, text, matches] : cases) {
    EXPECT_EQ(words_of({split({{"Regex", pattern}}, "Removed", true)}, text), matches) << pattern;
  }
}

// What tokenizers 0.23.3 makes of each: pre_tokenizers.Split(".", behavior, invert), and the others.
TEST(PreTokenizer, puts_parts_together_as_tokenizers_does) {
  struct Case {
    const char* behavior;
    Words words;
    Words inverted;
  };
  const Words parts = {".", ".", "a", ".", "b", ".", ".", "c"};
  const Words merged = {"..", "a", ".", "b", "..", "c"};
  const std::vector<Case> cases = {
      {"Removed", {"a", "b", "c"}, {".", ".", ".", ".", "."}},
      {"Isolated", parts, parts},
      {"Contiguous", merged, merged},
      {"MergedWithPrevious", {".", ".", "a.", "b.", ".", "c"}, {".", ".a", ".b", ".", ".c"}},
      {"MergedWithNext", {".", ".a", ".b", ".", ".c"}, {".", ".", "a.", "b.", ".", "c"}},
  };
  for (const auto& [behavior, words, inverted] : cases) {
    EXPECT_EQ(words_of({split({{"String", "."}}, behavior, false)}, "..a.b..c"), words) << behavior;
    EXPECT_EQ(words_of({split({{"String", "."}}, behavior, true)}, "..a.b..c"), inverted) << behavior;
  }
  // The list of U+166D and U+061D: punctuation in Unicode 8 and no longer, and since then.
  EXPECT_EQ(words_of({{{"type", "Punctuation"}, {"behavior", "Contiguous"}}}, "a$+。b\u166D\u061D."),
            (Words{"a", "$+。", "b", "\u166D", "\u061D", "."}));
  EXPECT_EQ(words_of({{{"type", "WhitespaceSplit"}}}, " a \u3000b."), (Words{"a", "b."}));
  EXPECT_EQ(words_of({{{"type", "BertPreTokenizer"}}}, " a b.c"), (Words{"a", "b", ".", "c"}));
  EXPECT_EQ(words_of({{{"type", "CharDelimiterSplit"}, {"delimiter", "."}}}, "a..b"), (Words{"a", "b"}));
  const json inner = {{{"type", "Digits"}, {"individual_digits", true}},
                      split({{"String", "a"}}, "MergedWithNext", false)};
  EXPECT_EQ(words_of({{{"type", "Sequence"}, {"pretokenizers", inner}}}, "ab12"), (Words{"ab", "1", "2"}));
}

}  // namespace
}  // namespace cadre::pre_tokenizer_test
