// SPDX-License-Identifier: Apache-2.0
// Texts end before a stop string, wherever pieces are cut.
#include <gtest/gtest.h>

#include <utility>

#include "runtime/infer/sampling.hpp"

namespace cadre::stop_strings_test {
namespace {

// What is given back of a text that comes in pieces of `size` bytes, and whether it was stopped.
std::pair<std::string, bool> read(const std::vector<std::string>& strings, const std::string& text, size_t size) {
  StopStrings stop(strings);
  std::string shown;
  for (size_t i = 0; i < text.size(); i += size) shown += stop.put(text.substr(i, size));
  return {shown + stop.finish(), stop.is_over()};
}

TEST(StopStrings, EndATextWhereverItIsCut) {
  using Result = std::pair<std::string, bool>;
  for (size_t size = 1; size < 12; ++size) {
    EXPECT_EQ(read({"END"}, "a text END more END", size), (Result{"a text ", true})) << size;
    EXPECT_EQ(read({"END"}, "a text EN", size), (Result{"a text EN", false})) << size;
    EXPECT_EQ(read({"aab"}, "aaab", size), (Result{"a", true})) << size;
    EXPECT_EQ(read({"b", "ab"}, "xxab", size), (Result{"xx", true})) << size;
    EXPECT_EQ(read({"\n\n", "User:"}, "one\nUser: x", size), (Result{"one\n", true})) << size;
    EXPECT_EQ(read({}, "one", size), (Result{"one", false}));
    EXPECT_EQ(read({""}, "one", size), (Result{"one", false}));
  }
}

TEST(StopStrings, HoldBackOnlyWhatMayBeOne) {
  StopStrings stop({"User:", "###"});
  EXPECT_EQ(stop.put("an answer"), "an answer");
  EXPECT_EQ(stop.put(" Use"), " ");
  EXPECT_EQ(stop.put("d #"), "Used ");
  EXPECT_EQ(stop.put("#"), "");
  EXPECT_EQ(stop.put("1"), "##1");
  EXPECT_FALSE(stop.is_over());
  EXPECT_EQ(stop.put("###rest"), "");
  EXPECT_TRUE(stop.is_over());
  EXPECT_EQ(stop.put("more"), "");
}

}  // namespace
}  // namespace cadre::stop_strings_test
