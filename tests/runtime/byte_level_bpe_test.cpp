// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE: the tokens of an independent implementation, and every text back as it was.
#include "runtime/tokenizer/byte_level_bpe.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "comm/base/random.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/tokenizer_samples.hpp"

namespace cadre::byte_level_bpe_test {
namespace {

using nlohmann::json;
using test::hard_texts;
using test::kSampleText;
using test::naive_tokenizer;

// Pieces of the text in another order.
std::string shuffled_text(uint64_t seed) {
  const Random random(seed, "shuffled", 0);
  std::string text;
  for (uint64_t i = 0; i < 40; ++i) {
    size_t begin = random.below(kSampleText.size(), 2 * i);
    size_t end = std::min(kSampleText.size(), begin + random.below(12, 2 * i + 1));
    const auto continues = [&](size_t at) { return at < kSampleText.size() && (kSampleText[at] & 0xC0) == 0x80; };
    while (continues(begin)) ++begin;
    while (continues(end)) ++end;
    if (begin < end) text += kSampleText.substr(begin, end - begin);
  }
  return text;
}

TEST(ByteLevelBpe, has_the_tokens_of_the_naive_one) {
  const ByteLevelBpe tokenizer(naive_tokenizer().file());
  EXPECT_EQ(tokenizer.vocab_size(), static_cast<int64_t>(naive_tokenizer().vocab_size()));
  const std::vector<int32_t> tokens = tokenizer.encode(kSampleText);
  EXPECT_EQ(tokens, naive_tokenizer().encode(kSampleText));
  EXPECT_LT(tokens.size(), kSampleText.size() / 2) << "nothing was merged, so nothing was tested";
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::string text = shuffled_text(seed);
    ASSERT_EQ(tokenizer.encode(text), naive_tokenizer().encode(text)) << text;
  }
}

TEST(ByteLevelBpe, gives_every_text_back) {
  const ByteLevelBpe tokenizer(naive_tokenizer().file());
  for (const std::string& text : hard_texts()) EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << text;
  EXPECT_EQ(tokenizer.encode(""), std::vector<int32_t>{});
  std::string all_bytes;
  for (int byte = 0; byte < 256; ++byte) all_bytes += static_cast<char>(byte);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(all_bytes)), all_bytes);
}

TEST(ByteLevelBpe, reads_merges_in_both_spellings) {
  const ByteLevelBpe tokenizer(naive_tokenizer().file(/*merges_are_lists=*/true));
  EXPECT_EQ(tokenizer.encode(kSampleText), naive_tokenizer().encode(kSampleText));
}

// A run of one letter: the pair of the lowest rule first, of equal ones the leftmost.
TEST(ByteLevelBpe, merges_overlapping_pairs_from_the_left) {
  json file = naive_tokenizer().file();
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
  json file = naive_tokenizer().file();
  file["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"c", 2}, {"d", 3}, {"bc", 4}, {"ab", 5}, {"bcd", 6}, {"abc", 7}};
  file["model"]["merges"] = {"b c", "a b", "bc d", "a bc"};
  EXPECT_EQ(ByteLevelBpe(file).encode("abcd"), (std::vector<int32_t>{0, 6}));
}

TEST(ByteLevelBpe, takes_whole_words_first_where_merges_are_ignored) {
  json file = naive_tokenizer().file();
  const auto next = static_cast<int32_t>(naive_tokenizer().vocab_size());
  file["model"]["vocab"]["zzz"] = next;
  EXPECT_EQ(ByteLevelBpe(file).encode("zzz").size(), 3);
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(ByteLevelBpe(file).encode("zzz"), std::vector<int32_t>{next});
}

// U+E0FFF may come with a version of Unicode; U+FDD0 is no character in any version; U+E000 is for private use.
TEST(ByteLevelBpe, says_what_its_tables_do_not_know) {
  const ByteLevelBpe tokenizer(naive_tokenizer().file());
  EXPECT_EQ(tokenizer.note_on("wise 智者 😀\uFDD0\uE000\xFF"), "");
  EXPECT_NE(
      tokenizer.note_on("a\xFF\U000E0FFF \U000E0FFF").find("2 characters unknown to the Unicode tables of Oniguruma"),
      std::string::npos);
  EXPECT_NE(tokenizer.note_on("\U000E0FFF").find("1 character unknown"), std::string::npos);
  EXPECT_NE(tokenizer.note_on("\U000E0FFF").find("the first U+E0FFF"), std::string::npos);
}

}  // namespace
}  // namespace cadre::byte_level_bpe_test
