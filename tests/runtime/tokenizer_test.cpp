// SPDX-License-Identifier: Apache-2.0
// The files of a tokenizer: what is read from them, and what is wrong in one line each.
#include "runtime/tokenizer/tokenizer.hpp"

#include <gtest/gtest.h>

#include "runtime/tokenizer/byte_level_bpe.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "tests/support/files.hpp"
#include "tests/support/tokenizer_samples.hpp"

namespace cadre::tokenizer_test {
namespace {

using nlohmann::json;
using test::kSampleText;
using test::naive_tokenizer;
using test::refusal_of_tokenizer;
using test::TemporaryDirectory;

TEST(ByteLevelBpe, knows_what_stands_before_a_prompt) {
  json file = naive_tokenizer().file();
  const auto next = static_cast<int32_t>(naive_tokenizer().vocab_size());
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
    json file = naive_tokenizer().file();
    file[json::json_pointer(path)] = value;
    const std::string text = refusal_of_tokenizer(file);
    EXPECT_NE(text.find(words), std::string::npos) << text;
    EXPECT_NE(text.find("tokenizer.json: "), std::string::npos) << text;
    EXPECT_NE(text.find("(hint: "), std::string::npos) << text;
  }
  EXPECT_NE(refusal_of_tokenizer(json::array()).find("allowed: an object"), std::string::npos);
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
  json file = naive_tokenizer().file();
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"}, {"pattern", {{"Regex", "(?:a|aa)+[bd]"}}}, {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}}}}};
  const ByteLevelBpe slow(file);
  EXPECT_NE(test::error_of([&] { slow.encode(std::string(40, 'a') + "cd"); }).find("does not come to an end"),
            std::string::npos);
  // One word of a million letters: with n^2 steps this test would not end.
  const ByteLevelBpe tokenizer(naive_tokenizer().file());
  for (const char* part : {"e", " ", "\n", "7", "!", "专", " \n", "\xFF", "\xE4\xB8"}) {
    std::string text = "in front";
    while (text.size() < 1'100'000) text += part;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text + "x")), text + "x") << part;
  }
}

TEST(OpenTokenizer, takes_what_a_directory_has) {
  const TemporaryDirectory folder;
  EXPECT_EQ(open_tokenizer("bytes")->encode("aé"), (std::vector<int32_t>{'a', 0xC3, 0xA9}));
  EXPECT_EQ(open_tokenizer(folder.path().string())->vocab_size(), kByteVocabSize);
  test::write_file(folder / "any name", naive_tokenizer().file().dump());
  const auto by_file = open_tokenizer((folder / "any name").string());
  EXPECT_EQ(by_file->encode(kSampleText), naive_tokenizer().encode(kSampleText));
  test::write_file(folder / "tokenizer.json", naive_tokenizer().file().dump());
  test::write_file(folder / "tokenizer_config.json", "{}");
  const TokenizerFiles files = read_tokenizer_files(folder.path().string());
  EXPECT_EQ(files.size(), 2);
  EXPECT_EQ(files.at("tokenizer.json"), naive_tokenizer().file().dump());
  EXPECT_EQ(open_tokenizer(folder.path().string())->encode(kSampleText), naive_tokenizer().encode(kSampleText));

  const auto refused = [](const std::string& where) { return test::error_of([&] { open_tokenizer(where); }); };
  EXPECT_NE(refused((folder / "none").string()).find("there is no such tokenizer"), std::string::npos);
  test::write_file(folder / "empty", "");
  EXPECT_NE(refused((folder / "empty").string()).find("an empty file"), std::string::npos);
  std::ofstream(folder / "large").close();
  std::filesystem::resize_file(folder / "large", uintmax_t{65} << 20);
  EXPECT_NE(refused((folder / "large").string()).find("allowed: at most 67108864"), std::string::npos);
}

}  // namespace
}  // namespace cadre::tokenizer_test
