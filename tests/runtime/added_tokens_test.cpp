// SPDX-License-Identifier: Apache-2.0
// Tokens that stand beside the vocabulary: where they are found, and their ids.
#include "runtime/tokenizer/added_tokens.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "runtime/tokenizer/byte_level_bpe.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/tokenizer_samples.hpp"

namespace cadre::added_tokens_test {
namespace {

using nlohmann::json;
using test::naive_tokenizer;
using test::refusal_of_tokenizer;

TEST(ByteLevelBpe, finds_added_tokens_before_words) {
  json file = naive_tokenizer().file();
  const auto first = static_cast<int32_t>(naive_tokenizer().vocab_size());
  file["added_tokens"] = {{{"id", first}, {"content", "<|end|>"}, {"special", true}},
                          {{"id", first + 1}, {"content", "<think>"}, {"special", false}},
                          {{"id", first + 2}, {"content", "<think>!"}, {"special", false}},
                          {{"id", first + 3}, {"content", "rank;"}, {"special", false}, {"normalized", true}}};
  const ByteLevelBpe tokenizer(file);
  EXPECT_EQ(tokenizer.vocab_size(), first + 4);
  EXPECT_EQ(tokenizer.encode("<|end|><think><think>!"), (std::vector<int32_t>{first, first + 1, first + 2}));
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{first, first + 1, first + 20, -1}), "<think>");
  std::vector<int32_t> tokens = naive_tokenizer().encode("to ");
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
  json file = naive_tokenizer().file();
  const auto first = static_cast<int32_t>(naive_tokenizer().vocab_size());
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

// tokenizers 0.23.3 gives added tokens the ids behind the vocabulary, in their order, whatever the file says.
TEST(ByteLevelBpe, numbers_added_tokens_as_tokenizers_does) {
  json file = naive_tokenizer().file();
  const auto first = static_cast<int32_t>(naive_tokenizer().vocab_size());
  file["added_tokens"] = {
      {{"id", first}, {"content", "<a>"}}, {{"id", first + 5}, {"content", "<b>"}}, {{"id", 7777}, {"content", "a"}}};
  const ByteLevelBpe tokenizer(file);
  EXPECT_EQ(tokenizer.encode("<b><a>a"),
            (std::vector<int32_t>{first + 1, first, naive_tokenizer().encode("a").front()}));
  EXPECT_EQ(tokenizer.vocab_size(), first + 2);
  const std::string told = fmt::format("\"<b>\" is {}, not {}", first + 1, first + 5);
  test::expect_message(tokenizer.note_on(""), {told.c_str(), "not 7777"});
  file["model"]["vocab"]["hole"] = first + 1;
  EXPECT_NE(refusal_of_tokenizer(file).find("\"<a>\" gets the id"), std::string::npos) << refusal_of_tokenizer(file);
}

}  // namespace
}  // namespace cadre::added_tokens_test
