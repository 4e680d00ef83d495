// SPDX-License-Identifier: Apache-2.0
// The bar on a pseudo-terminal, and its silence everywhere else.
#include "runtime/observe/progress_bar.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>

namespace cadre::progress_bar_test {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;

constexpr const char* kEraseLine = "\r\x1b[K";

class ProgressBarTest : public testing::Test {
 protected:
  // What a launcher would say; this process is a child of none.
  void SetUp() override { forget_launcher(); }
  void TearDown() override { forget_launcher(); }
  static void forget_launcher() {
    for (const char* name : {"SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) ::unsetenv(name);
  }
};

// What `action` writes to stderr when that is a terminal.
std::string on_terminal(const std::function<void()>& action) {
  int terminal = -1;
  int program = -1;
  EXPECT_EQ(::openpty(&terminal, &program, nullptr, nullptr, nullptr), 0);
  const int original = ::dup(STDERR_FILENO);
  ::dup2(program, STDERR_FILENO);
  action();
  ::dup2(original, STDERR_FILENO);
  ::close(original);
  ::close(program);
  // The last writer is gone: what it wrote is read to the end, and then comes an error.
  std::string text;
  char block[256];
  for (ssize_t count = 0; (count = ::read(terminal, block, sizeof(block))) > 0;) text.append(block, count);
  ::close(terminal);
  return text;
}

TEST(ProgressText, Golden) {
  EXPECT_EQ(progress_text(0.305, 65, 3752), "[######..............]  30% | 0:01:05 elapsed | 1:02:32 left");
  EXPECT_EQ(progress_text(0.0, 0, 0), "[....................]   0% | 0:00:00 elapsed | 0:00:00 left");
  EXPECT_EQ(progress_text(1.0, 0, 0), "[####################] 100% | 0:00:00 elapsed | 0:00:00 left");
}

TEST_F(ProgressBarTest, RedrawsOneLineAndTakesItAway) {
  const std::string text = on_terminal([] {
    ProgressBar bar(0);
    bar.update(1, 4);
    bar.update(2, 4);
  });
  EXPECT_THAT(text, AllOf(HasSubstr(" 25% | "), HasSubstr(" 50% | "), EndsWith(kEraseLine)));
  EXPECT_EQ(text.find('\n'), std::string::npos);
}

TEST_F(ProgressBarTest, IsGoneAtTheEnd) {
  const std::string text = on_terminal([] {
    ProgressBar bar(0);
    bar.update(3, 4);
    bar.update(4, 4);
  });
  EXPECT_THAT(text, EndsWith(kEraseLine));
  EXPECT_EQ(text.find("100%"), std::string::npos);
}

// srun --pty gives its first rank a terminal.
TEST_F(ProgressBarTest, DrawsUnderSlurmWhereThereIsATerminal) {
  ::setenv("SLURM_JOB_ID", "7", /*replace=*/1);
  EXPECT_THAT(on_terminal([] { ProgressBar(0).update(1, 4); }), HasSubstr(" 25% | "));
}

// stdout of a rank is a pseudo-terminal of mpirun, wherever mpirun writes it; this rank finds no mpirun above it.
TEST_F(ProgressBarTest, UnderMpirunTheTerminalOfMpirunCounts) {
  ::setenv("OMPI_COMM_WORLD_SIZE", "2", /*replace=*/1);
  EXPECT_EQ(on_terminal([] { ProgressBar(0).update(1, 4); }), "");
}

TEST_F(ProgressBarTest, DrawsWhereAskedToAndNotWhereAskedNotTo) {
  EXPECT_EQ(on_terminal([] { ProgressBar(0, ProgressBar::Show::never).update(1, 4); }), "");
  testing::internal::CaptureStderr();
  ProgressBar(0, ProgressBar::Show::always).update(1, 4);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(" 25% | "));
}

TEST_F(ProgressBarTest, DrawsNothingIntoAFile) {
  testing::internal::CaptureStderr();
  ProgressBar(0).update(1, 4);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace cadre::progress_bar_test
