// SPDX-License-Identifier: Apache-2.0
// Byte-level tokenizers of tokenizer.json files: the tokens of an independent implementation, every text back as it was,
// and files that are wrong in one line each.
#include "runtime/tokenizer/tokenizer.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>

#include "comm/base/random.hpp"
#include "runtime/tokenizer/byte_level_bpe.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/regex.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/naive_tokenizer.hpp"

namespace cadre {
namespace {

using nlohmann::json;
using test::NaiveTokenizer;
using test::TemporaryDirectory;

const std::string kText =
    "The expert's token moves to another rank, and back again. We'll say: it isn't 12345 but 67, don't they've "
    "seen?\n\n"
    "  Indented lines,   with  spaces;\tand tabs.\r\n专家混合模型把每个词元送给几个专家，专家再把结果送回来。"
    "エキスパート ça là déjà vu 😀😀👍🏽 → → 3.14159\n";

const NaiveTokenizer& naive() {
  static const NaiveTokenizer tokenizer(kText + kText, 120);
  return tokenizer;
}

std::vector<std::string> hard_texts() {
  return {"",
          " ",
          "   ",
          "\n",
          " \n \n  x",
          "a",
          "专家",
          "我们的专家 token 专家",
          "😀",
          "👩‍👩‍👧‍👦 🇩🇪",
          std::string("zero\0byte", 9),
          "\xFF\xFE",
          "half \xE4\xB8",
          "\xE4\xB8 and on",
          "\xF0\x9F\x98",
          "\x80\x80 expert \xC0\xAF",
          "tabs\tand\r\nlines\n",
          "'s 'S 'll'll 've'"};
}

// Pieces of the text in another order.
std::string shuffled_text(uint64_t seed) {
  const Random random(seed, "shuffled", 0);
  std::string text;
  for (uint64_t i = 0; i < 40; ++i) {
    size_t begin = random.below(kText.size(), 2 * i);
    size_t end = std::min(kText.size(), begin + random.below(12, 2 * i + 1));
    const auto continues = [&](size_t at) { return at < kText.size() && (kText[at] & 0xC0) == 0x80; };
    while (continues(begin)) ++begin;
    while (continues(end)) ++end;
    if (begin < end) text += kText.substr(begin, end - begin);
  }
  return text;
}

std::string refusal(const json& file) {
  return test::error_of([&] { make_tokenizer({{kTokenizerJsonFile, file.dump()}}, "tokenizer.json"); });
}

TEST(ByteLevelBpe, has_the_tokens_of_the_naive_one) {
  const ByteLevelBpe tokenizer(naive().file());
  EXPECT_EQ(tokenizer.vocab_size(), static_cast<int64_t>(naive().vocab_size()));
  const std::vector<int32_t> tokens = tokenizer.encode(kText);
  EXPECT_EQ(tokens, naive().encode(kText));
  EXPECT_LT(tokens.size(), kText.size() / 2) << "nothing was merged, so nothing was tested";
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::string text = shuffled_text(seed);
    ASSERT_EQ(tokenizer.encode(text), naive().encode(text)) << text;
  }
}

TEST(ByteLevelBpe, gives_every_text_back) {
  const ByteLevelBpe tokenizer(naive().file());
  for (const std::string& text : hard_texts()) EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << text;
  EXPECT_EQ(tokenizer.encode(""), std::vector<int32_t>{});
  std::string all_bytes;
  for (int byte = 0; byte < 256; ++byte) all_bytes += static_cast<char>(byte);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(all_bytes)), all_bytes);
}

TEST(ByteLevelBpe, reads_merges_in_both_spellings) {
  const ByteLevelBpe tokenizer(naive().file(/*merges_are_lists=*/true));
  EXPECT_EQ(tokenizer.encode(kText), naive().encode(kText));
}

// A run of one letter: the pair of the lowest rule first, of equal ones the leftmost.
TEST(ByteLevelBpe, merges_overlapping_pairs_from_the_left) {
  json file = naive().file();
  file["model"]["vocab"] = {{"a", 0}, {"aa", 1}, {"aaaa", 2}, {"aaa", 3}, {"b", 4}, {"ab", 5}, {"u", 6}};
  file["model"]["merges"] = {"a a", "aa aa", "aa a", "a b"};
  const ByteLevelBpe tokenizer(file);
  EXPECT_EQ(tokenizer.encode("aaaaa"), (std::vector<int32_t>{2, 0}));
  EXPECT_EQ(tokenizer.encode("aaa"), (std::vector<int32_t>{3}));
  EXPECT_EQ(tokenizer.encode("aaab"), (std::vector<int32_t>{3, 4}));
  test::expect_message(test::message_of([&] { tokenizer.encode("abc"); }), {"no token for the byte 0x63"});
  file["model"]["unk_token"] = "u";
  EXPECT_EQ(ByteLevelBpe(file).encode("ac"), (std::vector<int32_t>{0, 6}));
}

// A merge changes what its neighbours could become: a later rule there does not come in the place of an earlier one.
TEST(ByteLevelBpe, keeps_the_order_of_rules_beside_a_merge) {
  json file = naive().file();
  file["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"c", 2}, {"d", 3}, {"bc", 4}, {"ab", 5}, {"bcd", 6}, {"abc", 7}};
  file["model"]["merges"] = {"b c", "a b", "bc d", "a bc"};
  EXPECT_EQ(ByteLevelBpe(file).encode("abcd"), (std::vector<int32_t>{0, 6}));
}

// The words of DeepSeek-V3: three digits at a time, Chinese apart from all else, a mark with the letters behind it.
TEST(ByteLevelBpe, cuts_at_a_sequence_of_expressions) {
  json file = naive().file();
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

TEST(ByteLevelBpe, finds_added_tokens_before_words) {
  json file = naive().file();
  const auto first = static_cast<int32_t>(naive().vocab_size());
  file["added_tokens"] = {{{"id", first}, {"content", "<|end|>"}, {"special", true}},
                          {{"id", first + 1}, {"content", "<think>"}, {"special", false}},
                          {{"id", first + 2}, {"content", "<think>!"}, {"special", false}},
                          {{"id", first + 3}, {"content", "rank;"}, {"special", false}, {"normalized", true}}};
  const ByteLevelBpe tokenizer(file);
  EXPECT_EQ(tokenizer.vocab_size(), first + 4);
  EXPECT_EQ(tokenizer.encode("<|end|><think><think>!"), (std::vector<int32_t>{first, first + 1, first + 2}));
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{first, first + 1, first + 20, -1}), "<think>");
  std::vector<int32_t> tokens = naive().encode("to ");
  tokens.push_back(first + 3);
  tokens.push_back(first);
  EXPECT_EQ(tokenizer.encode("to rank;<|end|>"), tokens);
  EXPECT_EQ(tokenizer.find("<|end|>"), first);
  EXPECT_EQ(tokenizer.find("<|beginning|>"), std::nullopt);
}

// What tokenizers 0.23.3 makes of each.
TEST(ByteLevelBpe, finds_added_tokens_by_their_flags) {
  const auto token = [](int id, const char* content, json flags) {
    flags.update({{"id", id}, {"content", content}});
    return flags;
  };
  json file = naive().file();
  const auto first = static_cast<int32_t>(naive().vocab_size());
  file["added_tokens"] = {token(first, "<L>", {{"lstrip", true}}),
                          token(first + 1, "<R>", {{"rstrip", true}}),
                          token(first + 2, "<W>", {{"single_word", true}}),
                          token(first + 3, " x", {{"lstrip", true}}),
                          token(first + 4, "<N>", {{"normalized", true}, {"lstrip", true}, {"rstrip", true}}),
                          token(first + 5, "<N>!", json::object())};
  const ByteLevelBpe tokenizer(file);
  const auto parts = [&](const char* text) {
    std::vector<std::string> found;
    bool is_open = false;
    for (const int32_t id : tokenizer.encode(text)) {
      if (is_open && id < first) {
        found.back() += tokenizer.piece(id);
      } else {
        found.push_back(tokenizer.piece(id));
      }
      is_open = id < first;
    }
    return found;
  };
  using Parts = std::vector<std::string>;
  EXPECT_EQ(parts("a  <L>b<R> \n c<W> d<W>e <W>"), (Parts{"a", "<L>", "b", "<R>", "c<W> d<W>e ", "<W>"}));
  EXPECT_EQ(parts("<W>é<W>"), (Parts{"<W>é<W>"}));
  EXPECT_EQ(parts("<N>! <N> a"), (Parts{"<N>!", "<N>", "a"}));
  EXPECT_EQ(parts("  <L>  <L>"), (Parts{"<L>", "<L>"}));
  EXPECT_EQ(parts("<R> x"), (Parts{"<R>", " x"}));
}

TEST(ByteLevelBpe, takes_whole_words_first_where_merges_are_ignored) {
  json file = naive().file();
  const auto next = static_cast<int32_t>(naive().vocab_size());
  file["model"]["vocab"]["zzz"] = next;
  EXPECT_EQ(ByteLevelBpe(file).encode("zzz").size(), 3);
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(ByteLevelBpe(file).encode("zzz"), std::vector<int32_t>{next});
}

TEST(ByteLevelBpe, knows_what_stands_before_a_prompt) {
  json file = naive().file();
  const auto next = static_cast<int32_t>(naive().vocab_size());
  file["added_tokens"] = {{{"id", next}, {"content", "<s>"}, {"special", true}}};
  const json single =
      json::parse(R"([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                                      {"SpecialToken": {"id": "</s>", "type_id": 0}}])");
  const auto prefix_with = [&](const std::string& config) {
    TokenizerFiles files = {{kTokenizerJsonFile, file.dump()}};
    if (!config.empty()) files.emplace(kTokenizerConfigFile, config);
    return make_tokenizer(files, "x")->prompt_prefix();
  };
  const std::vector<int32_t> none;
  const std::vector<int32_t> begin = {next};
  EXPECT_EQ(prefix_with(""), none);
  EXPECT_EQ(prefix_with(R"({"add_bos_token": true, "bos_token": {"content": "<s>"}})"), begin);
  EXPECT_EQ(prefix_with(R"({"add_bos_token": true, "bos_token": "<s>"})"), begin);
  file["post_processor"] = {
      {"type", "Sequence"},
      {"processors", {{{"type", "ByteLevel"}}, {{"type", "TemplateProcessing"}, {"single", single}}}}};
  EXPECT_EQ(prefix_with(""), begin);
  EXPECT_EQ(prefix_with("{}"), begin);
  EXPECT_EQ(prefix_with(R"({"add_bos_token": false})"), none);
  EXPECT_NE(test::error_of([&] { prefix_with(R"({"add_bos_token": true, "bos_token": "<t>"})"); }).find("\"<t>\""),
            std::string::npos);
}

TEST(ByteLevelBpe, refuses_what_is_wrong_or_foreign) {
  struct Case {
    const char* path;
    json value;
    const char* words;
  };
  const json byte_level = {{"type", "ByteLevel"}};
  const std::vector<Case> cases = {
      {"/normalizer", {{"type", "NFKC"}}, "normalizer = \"NFKC\", allowed: none | NFC"},
      {"/pre_tokenizer", {{"type", "Metaspace"}}, "\"Metaspace\" stands at the end"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer is missing"},
      {"/pre_tokenizer", 7, "pre_tokenizer is number, allowed: object"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", json::array()}}, "has 0 steps"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {byte_level, byte_level}}}, "stands before the end"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {{{"type", "UnicodeScripts"}}, byte_level}}},
       "\"UnicodeScripts\", allowed: Split | Digits | "},
      {"/pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers", {{{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}}, byte_level}}},
       "the regular expression (a is wrong: end pattern with unmatched parenthesis"},
      {"/pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers", {{{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Alone"}}, byte_level}}},
       "\"Alone\", allowed: Removed | Isolated | "},
      {"/model", nullptr, "model is missing"},
      {"/model/type", "Unigram", "model.type = \"Unigram\", allowed: BPE"},
      {"/model/byte_fallback", true, "byte_fallback"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/model/vocab", json::array(), "model.vocab is array, allowed: object"},
      {"/model/vocab/a", -1, "the id of \"a\" is -1, allowed: an integer in [0, 2147483647)"},
      {"/model/vocab/a", 1e30, "the id of \"a\" is 1e+30"},
      {"/model/vocab/a", "b", "the id of \"a\" is string"},
      {"/model/vocab/a", 98, "has the id 98 of another token"},
      {"/model/merges", "a b", "model.merges is string, allowed: array"},
      {"/model/merges/0", "a", "model.merges[0] is no pair"},
      {"/model/merges/0", "a b c", "model.merges[0] is no pair"},
      {"/model/merges/0", json{"a"}, "model.merges[0] is no pair"},
      {"/model/merges/1", "q x", "model.merges[1]: \"qx\" is not in model.vocab"},
      {"/added_tokens", 3, "added_tokens is number"},
      {"/added_tokens/0", {{"id", 1}}, "a content of 0 bytes"},
      {"/added_tokens/0", {{"id", 1}, {"content", std::string(300, 'a')}}, "a content of 300 bytes, allowed: 1 to 256"},
      {"/added_tokens/0", {{"content", "a"}}, "the id of \"a\" is null"},
      {"/added_tokens/0", {{"id", 1}, {"content", "a"}, {"lstrip", 1}}, "added_tokens.lstrip is number"},
      {"/post_processor", {{"type", "RobertaProcessing"}}, "post_processor = \"RobertaProcessing\", allowed: "},
      {"/post_processor", json::parse(R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]})"),
       "there is no token \"<s>\""},
  };
  for (const auto& [path, value, words] : cases) {
    SCOPED_TRACE(words);
    json file = naive().file();
    file[json::json_pointer(path)] = value;
    const std::string text = refusal(file);
    EXPECT_NE(text.find(words), std::string::npos) << text;
    EXPECT_NE(text.find("tokenizer.json: "), std::string::npos) << text;
    EXPECT_NE(text.find("(hint: "), std::string::npos) << text;
  }
  EXPECT_NE(refusal(json::array()).find("allowed: an object"), std::string::npos);
}

TEST(ByteLevelBpe, ends_in_time_whatever_the_file_says) {
  const auto make = [](const std::string& content) {
    make_tokenizer({{kTokenizerJsonFile, content}}, "tokenizer.json");
  };
  const std::string deep = "{\"model\": " + std::string(1'000'000, '[');
  EXPECT_NE(test::error_of([&] { make(deep); }).find("nested more than 32 deep"), std::string::npos);
  EXPECT_NE(test::error_of([&] { make("{\"model\": }"); }).find("is not JSON"), std::string::npos);
  EXPECT_NE(test::error_of([&] { make("{\"model\": 1e999}"); }).find("is not JSON"), std::string::npos);
  EXPECT_NE(test::error_of([&] {
              make(R"({"a": 1, "model": {"vocab": {"a": 1, "b": 2, "a": 3}}})");
            }).find("has the key \"a\" twice in one object"),
            std::string::npos);

  // An expression that would try all ways to cut 40 letters.
  json file = naive().file();
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"}, {"pattern", {{"Regex", "(?:a|aa)+[bd]"}}}, {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}}}}};
  const ByteLevelBpe slow(file);
  EXPECT_NE(test::error_of([&] { slow.encode(std::string(40, 'a') + "cd"); }).find("does not come to an end"),
            std::string::npos);
  // One word of a million letters: with n^2 steps this test would not end.
  const ByteLevelBpe tokenizer(naive().file());
  for (const char* part : {"e", " ", "\n", "7", "!", "专", " \n", "\xFF", "\xE4\xB8"}) {
    std::string text = "in front";
    while (text.size() < 1'100'000) text += part;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text + "x")), text + "x") << part;
  }
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

// tokenizers 0.23.3 gives added tokens the ids behind the vocabulary, in their order, whatever the file says.
TEST(ByteLevelBpe, numbers_added_tokens_as_tokenizers_does) {
  json file = naive().file();
  const auto first = static_cast<int32_t>(naive().vocab_size());
  file["added_tokens"] = {
      {{"id", first}, {"content", "<a>"}}, {{"id", first + 5}, {"content", "<b>"}}, {{"id", 7777}, {"content", "a"}}};
  const ByteLevelBpe tokenizer(file);
  EXPECT_EQ(tokenizer.encode("<b><a>a"), (std::vector<int32_t>{first + 1, first, naive().encode("a").front()}));
  EXPECT_EQ(tokenizer.vocab_size(), first + 2);
  const std::string told = fmt::format("\"<b>\" is {}, not {}", first + 1, first + 5);
  test::expect_message(tokenizer.note_on(""), {told.c_str(), "not 7777"});
  file["model"]["vocab"]["hole"] = first + 1;
  EXPECT_NE(refusal(file).find("\"<a>\" gets the id"), std::string::npos) << refusal(file);
}

// U+E0FFF may come with a version of Unicode; U+FDD0 is no character in any version; U+E000 is for private use.
TEST(ByteLevelBpe, says_what_its_tables_do_not_know) {
  const ByteLevelBpe tokenizer(naive().file());
  EXPECT_EQ(tokenizer.note_on("wise 智者 😀\uFDD0\uE000\xFF"), "");
  EXPECT_NE(
      tokenizer.note_on("a\xFF\U000E0FFF \U000E0FFF").find("2 characters unknown to the Unicode tables of Oniguruma"),
      std::string::npos);
  EXPECT_NE(tokenizer.note_on("\U000E0FFF").find("1 character unknown"), std::string::npos);
  EXPECT_NE(tokenizer.note_on("\U000E0FFF").find("the first U+E0FFF"), std::string::npos);
}

TEST(OpenTokenizer, takes_what_a_directory_has) {
  const TemporaryDirectory folder;
  EXPECT_EQ(open_tokenizer("bytes")->encode("aé"), (std::vector<int32_t>{'a', 0xC3, 0xA9}));
  EXPECT_EQ(open_tokenizer(folder.path().string())->vocab_size(), kByteVocabSize);
  test::write_file(folder / "any name", naive().file().dump());
  const auto by_file = open_tokenizer((folder / "any name").string());
  EXPECT_EQ(by_file->encode(kText), naive().encode(kText));
  test::write_file(folder / "tokenizer.json", naive().file().dump());
  test::write_file(folder / "tokenizer_config.json", "{}");
  const TokenizerFiles files = read_tokenizer_files(folder.path().string());
  EXPECT_EQ(files.size(), 2);
  EXPECT_EQ(files.at("tokenizer.json"), naive().file().dump());
  EXPECT_EQ(open_tokenizer(folder.path().string())->encode(kText), naive().encode(kText));

  const auto refused = [](const std::string& where) { return test::error_of([&] { open_tokenizer(where); }); };
  EXPECT_NE(refused((folder / "none").string()).find("there is no such tokenizer"), std::string::npos);
  test::write_file(folder / "empty", "");
  EXPECT_NE(refused((folder / "empty").string()).find("an empty file"), std::string::npos);
  std::ofstream(folder / "large").close();
  std::filesystem::resize_file(folder / "large", uintmax_t{65} << 20);
  EXPECT_NE(refused((folder / "large").string()).find("allowed: at most 67108864"), std::string::npos);
}

}  // namespace
}  // namespace cadre
