// SPDX-License-Identifier: Apache-2.0
// Text that comes byte by byte is shown in whole characters, and none of it is lost.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/tokenizer/utf8.hpp"

namespace cadre::utf8_stream_test {
namespace {

using Shown = std::vector<std::string>;

// What is shown after each byte, and at the end.
Shown shown(const std::string& text) {
  Utf8Stream stream;
  Shown all;
  for (const char byte : text) all.push_back(stream.put({&byte, 1}));
  all.push_back(stream.finish());
  return all;
}

TEST(Utf8Stream, shows_whole_characters) {
  EXPECT_EQ(shown("a专b"), (Shown{"a", "", "", "专", "b", ""}));
  EXPECT_EQ(shown("é😀"), (Shown{"", "é", "", "", "", "😀", ""}));
}

TEST(Utf8Stream, holds_nothing_back_that_is_no_beginning) {
  EXPECT_EQ(shown("\xFF\x80\xC0"), (Shown{"\xFF", "\x80", "\xC0", ""}));
  EXPECT_EQ(shown("\xE4\xB8x"), (Shown{"", "", "\xE4\xB8x", ""}));
  EXPECT_EQ(shown("\xE4\xE4\xB8\x93"), (Shown{"", "\xE4", "", "专", ""}));
}

TEST(Utf8Stream, gives_the_rest_at_the_end) {
  EXPECT_EQ(shown("a\xF0\x9F\x98"), (Shown{"a", "", "", "", "\xF0\x9F\x98"}));
}

TEST(Utf8Stream, takes_pieces_of_any_length) {
  const std::string text = "专家 😀 é, and \xFF.";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    Utf8Stream stream;
    std::string all = stream.put(text.substr(0, cut));
    EXPECT_TRUE(all.empty() || text.find(all) == 0);
    all += stream.put(text.substr(cut));
    EXPECT_EQ(all + stream.finish(), text);
  }
}

}  // namespace
}  // namespace cadre::utf8_stream_test
