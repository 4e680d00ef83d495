// SPDX-License-Identifier: Apache-2.0
// Texts in their order, each at once and in whole characters.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/infer/generate.hpp"

namespace cadre::text_stream_test {
namespace {

using Pieces = std::vector<std::string>;

class TextStreamTest : public testing::Test {
 protected:
  TextStream stream(size_t num_texts) {
    return {num_texts, [this](std::string_view text) { pieces.emplace_back(text); }};
  }
  Pieces pieces;
};

TEST_F(TextStreamTest, ACharacterComesWithItsLastByte) {
  TextStream one = stream(1);
  for (const char byte : std::string("aé用😀z")) one.add(0, std::string_view(&byte, 1));
  EXPECT_EQ(pieces, (Pieces{"a", "é", "用", "😀", "z"}));
  one.end(0);
  EXPECT_EQ(pieces.back(), "\n");
}

TEST_F(TextStreamTest, TextsComeOneAfterTheOther) {
  TextStream three = stream(3);
  three.add(1, "B1\xE7\x94");
  three.add(0, "A1");
  three.add(2, "C1");
  three.add(1, "\xA8");
  three.end(1);
  three.add(0, "A2");
  EXPECT_EQ(pieces, (Pieces{"A1", "A2"}));
  three.end(0);
  EXPECT_EQ(pieces, (Pieces{"A1", "A2", "\n", "B1用\n", "C1"}));
  three.add(2, "C2");
  three.end(2);
  EXPECT_EQ(pieces, (Pieces{"A1", "A2", "\n", "B1用\n", "C1", "C2", "\n"}));
}

}  // namespace
}  // namespace cadre::text_stream_test
