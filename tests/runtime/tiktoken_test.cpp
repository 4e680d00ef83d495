// SPDX-License-Identifier: Apache-2.0
// tiktoken.model files as Moonlight and Kimi K2 have them: the ids of the `tiktoken` package (tests/golden/tiktoken, made by
// `make` there), every text back as it was, end tokens, and files that are wrong in one line each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <string>

#include "comm/base/random.hpp"
#include "runtime/checkpoint/companion_files.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/tokenizer/tokenizer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"

namespace cadre::tiktoken_test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::expect_message;
using test::message_of;
using testing::ElementsAre;

const fs::path kFolder = fs::path(CADRE_TEST_FOLDER) / "golden/tiktoken";

TEST(Tiktoken, FindsTheIdsOfTheTiktokenPackage) {
  const auto tokenizer = open_tokenizer(kFolder.string());
  const json expected = read_json_file(kFolder / "expected.json");
  ASSERT_GE(expected["texts"].size(), 15U);
  for (const json& one : expected["texts"]) {
    const std::string text = one["text"];
    EXPECT_EQ(tokenizer->encode(text), one["ids"].get<std::vector<int32_t>>()) << text;
  }
  const int64_t num_ranks = expected["num_ranks"];
  EXPECT_EQ(tokenizer->vocab_size(), num_ranks + 256);
  EXPECT_EQ(tokenizer->begin_of_text(), num_ranks);
  EXPECT_EQ(tokenizer->end_of_text(), num_ranks + 1);
  EXPECT_EQ(tokenizer->find("<|im_end|>"), num_ranks + 2);
  EXPECT_TRUE(tokenizer->prompt_prefix().empty());
  EXPECT_EQ(tokenizer->piece(static_cast<int32_t>(num_ranks)), "");
  EXPECT_EQ(tokenizer->piece(static_cast<int32_t>(num_ranks + 9)), "");  // a reserved one
  EXPECT_EQ(open_tokenizer((kFolder / "tiktoken.model").string())->encode("the router"),
            tokenizer->encode("the router"));
}

TEST(Tiktoken, AnyBytesComeBack) {
  const auto tokenizer = open_tokenizer(kFolder.string());
  const Random random(3, "tiktoken", 0);
  for (uint64_t round = 0; round < 200; ++round) {
    std::string text;
    for (uint64_t i = 0; i < round % 40; ++i) text += static_cast<char>(256.0 * random.uniform(100 * round + i));
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

// Kimi's generation_config.json names another token than its config.json: the end of a turn.
TEST(Tiktoken, EndTokensAreThoseOfGenerationConfig) {
  const test::TemporaryDirectory folder;
  write_text_file(folder / "config.json", R"({"eos_token_id": 585})");
  EXPECT_THAT(end_tokens_of(folder.path(), 840), ElementsAre(585));
  write_text_file(folder / "generation_config.json", R"({"eos_token_id": 586})");
  EXPECT_THAT(end_tokens_of(folder.path(), 840), ElementsAre(586));
}

class WrongTiktoken : public testing::Test {
 protected:
  WrongTiktoken() {
    for (const char* name : {"tiktoken.model", "tokenizer_config.json"}) fs::copy(kFolder / name, folder_ / name);
    model_ = test::read_file(folder_ / "tiktoken.model");
  }
  std::string message(const std::string& model) {
    test::write_file(folder_ / "tiktoken.model", model);
    return message_of([&] { open_tokenizer(folder_.path().string()); });
  }

  test::TemporaryDirectory folder_;
  std::string model_;
};

TEST_F(WrongTiktoken, IsRefusedInOneLine) {
  EXPECT_EQ(message(model_), "no error");
  expect_message(message("AA= 0\n"), {"tiktoken.model: line 1", "base64"});
  expect_message(message("AA== x\n"), {"line 1"});
  expect_message(message("AA==\n"), {"line 1"});
  expect_message(message("AA== -1\n"), {"line 1"});
  expect_message(message("A%== 0\n"), {"line 1"});
  expect_message(message("AA== 0\nAA== 1\n"), {"line 2", "second time"});
  expect_message(message("AA== 0\nAQ== 0\n"), {"line 2", "second time"});
  expect_message(message("AA== 0\nAQ== 2\n"), {"rank", "1 is missing"});
  expect_message(message("AA== 0\nAQ== 1\n"), {"no token for the byte 0x02"});
}

TEST_F(WrongTiktoken, NeedsItsConfiguration) {
  json config = read_json_file(folder_ / "tokenizer_config.json");
  const auto with = [&](const json& changes) {
    json changed = config;
    changed.update(changes);
    write_text_file(folder_ / "tokenizer_config.json", changed.dump());
    return message(model_);
  };
  expect_message(with({{"tokenizer_class", "QWenTokenizer"}}),
                 {"tokenizer_class = ", "QWenTokenizer", "TikTokenTokenizer"});
  expect_message(with({{"added_tokens_decoder", {{"5", {{"content", "[X]"}, {"special", true}}}}}}),
                 {"special token of id 5"});
  fs::remove(folder_ / "tokenizer_config.json");
  expect_message(message(model_), {"tiktoken.model without tokenizer_config.json"});
}

}  // namespace
}  // namespace cadre::tiktoken_test
