// SPDX-License-Identifier: Apache-2.0
// Colours of a terminal, hints for unknown names, entries of --help, several errors as one.
#include "comm/base/console.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "comm/base/check.hpp"
#include "comm/base/fields.hpp"

namespace cadre::console_test {
namespace {

using testing::HasSubstr;

TEST(Console, HighlightsTheFirstWordOfALine) {
  EXPECT_EQ(highlight("warning: full\nplain\nnote: x\n"),
            "\x1b[33mwarning:\x1b[0m full\nplain\n\x1b[36mnote:\x1b[0m x\n");
  EXPECT_EQ(highlight("step 1/3 | loss 2\n"), "\x1b[1mstep 1/3\x1b[0m | loss 2\n");
  EXPECT_EQ(highlight("a warning: in the middle\n"), "a warning: in the middle\n");
  EXPECT_EQ(highlight(""), "");
}

// What say() writes to stdout when that is a terminal.
std::string said_to_terminal() {
  int terminal = -1;
  int program = -1;
  EXPECT_EQ(::openpty(&terminal, &program, nullptr, nullptr, nullptr), 0);
  std::fflush(stdout);
  const int original = ::dup(STDOUT_FILENO);
  ::dup2(program, STDOUT_FILENO);
  say("warning: full\n");
  ::dup2(original, STDOUT_FILENO);
  ::close(original);
  ::close(program);
  char block[256];
  const ssize_t count = ::read(terminal, block, sizeof(block));
  ::close(terminal);
  return {block, static_cast<size_t>(std::max<ssize_t>(count, 0))};
}

TEST(Console, ColoursATerminalUnlessToldNotTo) {
  for (const char* name : {"NO_COLOR", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) ::unsetenv(name);
  EXPECT_THAT(said_to_terminal(), HasSubstr("\x1b[33mwarning:\x1b[0m full"));
  ::setenv("NO_COLOR", "1", 1);
  EXPECT_EQ(said_to_terminal(), "warning: full\r\n");
  ::unsetenv("NO_COLOR");
  testing::internal::CaptureStdout();
  say("warning: full\n");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "warning: full\n");
}

TEST(Hints, NameWhatIsNearAndNothingElse) {
  const std::vector<std::string> known = {"train.steps", "model.hidden_size", "seed"};
  EXPECT_EQ(nearest_name_hint("train.stpes", known), "the nearest known name is train.steps");
  EXPECT_EQ(nearest_name_hint("model.hiden_size", known), "the nearest known name is model.hidden_size");
  EXPECT_EQ(nearest_name_hint("sede", known), "known names: train.steps, model.hidden_size, seed");
  EXPECT_EQ(nearest_name_hint("sed", known), "the nearest known name is seed");
  EXPECT_EQ(nearest_name_hint("train.banana", std::vector<std::string>(50, "train.steps")), "");
}

TEST(Help, EntriesFit100Columns) {
  const std::string help = "words that go on and on, " + std::string(60, 'x') + " and " + std::string(40, 'y') + " end";
  for (const std::string& name : {std::string("short"), std::string(60, 'n')}) {
    std::istringstream lines(help_entry(name, help));
    std::string all;
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(line.size(), 100U) << line;
      all += line + ' ';
    }
    EXPECT_THAT(all, HasSubstr(std::string(60, 'x')));
    EXPECT_THAT(all, HasSubstr(" end "));
  }
}

TEST(ErrorList, ThrowsAllErrorsAtOnce) {
  ErrorList errors;
  EXPECT_NO_THROW(errors.raise());
  errors.collect([] { CADRE_CHECK(false, "a = 1, allowed: 2", "two"); });
  errors.collect([] { CADRE_CHECK(true, "never"); });
  try {
    errors.raise();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.text(), "a = 1, allowed: 2");
    EXPECT_EQ(error.hint(), "two");
  }
  errors.collect([] { CADRE_CHECK(false, "b = 3, allowed: 4", "four"); });
  try {
    errors.raise();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_STREQ(error.what(), "a = 1, allowed: 2 (hint: two); also: b = 3, allowed: 4 (hint: four)");
  }
  EXPECT_THROW(errors.collect([] { throw Error(ErrorKind::internal, "ours"); }), Error);
}

}  // namespace
}  // namespace cadre::console_test
