// SPDX-License-Identifier: Apache-2.0
// What lies beside the weights so that other programs read tokens as Cadre does: tokenizers, also of bytes, chat templates
// and the tokens that end a text.
#include "runtime/checkpoint/companion_files.hpp"

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "runtime/tokenizer/byte_level_bpe.hpp"
#include "tests/support/files.hpp"
#include "tests/support/naive_tokenizer.hpp"

namespace cadre::companion_files_test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using Tokens = std::vector<int32_t>;

class EndTokens : public testing::Test {
 protected:
  Tokens of(const char* generation, const char* config) {
    test::write_file(folder_ / "config.json", config);
    std::filesystem::remove(folder_ / "generation_config.json");
    if (*generation != '\0') test::write_file(folder_ / "generation_config.json", generation);
    return end_tokens_of(folder_.path(), 10);
  }
  std::string refusal(const char* generation) {
    return test::error_of([&] { of(generation, "{}"); });
  }

  test::TemporaryDirectory folder_;
};

// transformers 5.24, GenerationConfig.from_pretrained and from_model_config.
TEST_F(EndTokens, AreThoseThatTransformersStopsAt) {
  EXPECT_EQ(of("", R"({"eos_token_id": 3})"), Tokens{3});
  EXPECT_EQ(of("", R"({"eos_token_id": [3, 4]})"), (Tokens{3, 4}));
  EXPECT_EQ(of("", R"({"eos_token_id": null})"), Tokens{});
  EXPECT_EQ(of("", R"({"eos_token_id": -1})"), Tokens{});
  EXPECT_EQ(of("", "{}"), Tokens{});
  EXPECT_EQ(of(R"({"eos_token_id": [5, 6, 9]})", R"({"eos_token_id": 3})"), (Tokens{5, 6, 9}));
  EXPECT_EQ(of(R"({"eos_token_id": 5})", "{}"), Tokens{5});
  EXPECT_EQ(of(R"({"temperature": 1})", R"({"eos_token_id": 3})"), Tokens{3});
}

TEST_F(EndTokens, RefuseWhatIsNoToken) {
  EXPECT_THAT(refusal(R"({"eos_token_id": 10})"),
              HasSubstr("eos_token_id = 10, allowed: integer in [0, vocab_size = 10)"));
  EXPECT_THAT(refusal(R"({"eos_token_id": "</s>"})"), HasSubstr("eos_token_id is string"));
  EXPECT_THAT(refusal(R"({"eos_token_id": [1, {}]})"), HasSubstr("eos_token_id is object"));
  EXPECT_THAT(refusal(R"({"eos_token_id": 1e300})"), HasSubstr("eos_token_id is 1e+300"));
  EXPECT_THAT(refusal("[]"), HasSubstr("not a JSON object"));
}

TEST(GenerationConfig, SaysWhatTheModelEndsTextsWith) {
  ModelConfig model;
  const auto of = [&](const char* kept) { return json::parse(generation_config_of(model, kept)); };
  EXPECT_EQ(of(""), json::object());
  model.bos_token_id = 1;
  model.eos_token_id = 2;
  EXPECT_EQ(of(""), json::parse(R"({"bos_token_id": 1, "eos_token_id": 2})"));
  EXPECT_EQ(of(R"({"eos_token_id": [7, 2], "top_p": 0.9, "bos_token_id": 5})"),
            json::parse(R"({"eos_token_id": [7, 2], "top_p": 0.9, "bos_token_id": 5})"));
  EXPECT_EQ(of(R"({"eos_token_id": 7})")["eos_token_id"], json::parse("[2, 7]"));
  EXPECT_THAT(test::error_of([&] { of("{"); }), HasSubstr("not a JSON object"));
  EXPECT_EQ(json::parse(generation_config_of(json::parse(R"({"eos_token_id": [3, 4], "bos_token_id": null})"))),
            json::parse(R"({"eos_token_id": [3, 4]})"));
}

TEST(CompanionFiles, OfBytesAreATokenizerWithTheSameIds) {
  const TokenizerFiles files = companion_files(ModelConfig(), {}, true);
  ASSERT_EQ(files.size(), 3);
  const ByteLevelBpe tokenizer(json::parse(files.at("tokenizer.json")));
  std::string all_bytes = "wise 智者 \n\r\n  's 12345";
  for (int byte = 0; byte < 256; ++byte) all_bytes += static_cast<char>(byte);
  Tokens ids;
  for (const char byte : all_bytes) ids.push_back(static_cast<unsigned char>(byte));
  EXPECT_EQ(tokenizer.encode(all_bytes), ids);
  EXPECT_EQ(tokenizer.vocab_size(), 256);

  const test::TemporaryDirectory folder;
  for (const auto& [name, content] : files) test::write_file(folder / name, content);
  EXPECT_TRUE(read_tokenizer_files(folder.path().string()).empty()) << "the tokenizer of bytes is not known again";
  EXPECT_EQ(companion_files(ModelConfig(), {}, false).size(), 1);
}

TEST(TokenizerFiles, ComeWithAllThatBelongsToThem) {
  const test::TemporaryDirectory folder;
  const std::vector<std::string> beside = {
      "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
      "chat_template.json",    "generation_config.json",  "vocab.json",        "merges.txt"};
  for (const std::string& name : beside) test::write_file(folder / name, name == "chat_template.jinja" ? "" : "{}");
  test::write_file(folder / "model.py", "not of the tokenizer");
  std::filesystem::create_directory(folder / "additional_chat_templates");
  test::write_file(folder / "additional_chat_templates/tool.jinja", "{{ tool }}");
  EXPECT_TRUE(read_tokenizer_files(folder.path().string()).empty()) << "there is no tokenizer";

  test::write_file(folder / "tokenizer.json", test::NaiveTokenizer("a a", 1).file().dump());
  const TokenizerFiles files = read_tokenizer_files(folder.path().string());
  EXPECT_EQ(files.size(), beside.size() + 2);
  for (const std::string& name : beside) EXPECT_TRUE(files.contains(name)) << name;
  EXPECT_EQ(files.at("additional_chat_templates/tool.jinja"), "{{ tool }}");
  EXPECT_EQ(read_tokenizer_files((folder / "tokenizer.json").string()), files);
}

}  // namespace
}  // namespace cadre::companion_files_test
