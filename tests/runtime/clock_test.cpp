// SPDX-License-Identifier: Apache-2.0
// Clocks that start anywhere are found, and times between two measurements lie on a straight line.
#include <gtest/gtest.h>

#include <cstdlib>

#include "runtime/observe/trace_file.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::clock_test {
namespace {

using test::on_ranks;

constexpr int64_t kHour = int64_t{3600} * 1'000'000'000;

// The ranks of one machine read one clock, so that the right answer is known; each pretends that it is a few hours on.
TEST(Clock, FindsTheOffsetOfEachRank) {
  on_ranks([](Communicator& world) {
    const int64_t ahead = (world.rank() + 1) * kHour;
    const auto clock = [&] { return trace_clock_ns() + ahead; };
    const int64_t before = clock();
    const ClockOffset found = measure_clock_offset(world, kDefaultDeadlineSeconds, clock);
    const int64_t after = clock();
    EXPECT_GE(found.at_ns, before);
    EXPECT_LE(found.at_ns, after);
    if (world.rank() == 0) {
      EXPECT_EQ(found.offset_ns, 0);
      EXPECT_EQ(found.error_ns, 0);
    } else {
      EXPECT_GT(found.error_ns, 0);
      EXPECT_LE(std::abs(found.offset_ns - (kHour - ahead)), found.error_ns);
    }
  });
}

TEST(Clock, OneClockHasNoOffset) {
  on_ranks([](Communicator& world) { EXPECT_EQ(measure_clock_offset(world).offset_ns, 0); });
}

TEST(Clock, TimesLieOnAStraightLine) {
  const ClockOffsets offsets = {{.at_ns = 1000, .offset_ns = 500, .error_ns = 3},
                                {.at_ns = 2000, .offset_ns = 600, .error_ns = 7}};
  EXPECT_EQ(on_clock_of_rank_0(offsets, 1000), 1500);
  EXPECT_EQ(on_clock_of_rank_0(offsets, 1500), 2050);
  EXPECT_EQ(on_clock_of_rank_0(offsets, 2000), 2600);
  EXPECT_EQ(on_clock_of_rank_0(offsets, 0), 500) << "before: the first offset";
  EXPECT_EQ(on_clock_of_rank_0(offsets, 3000), 3600) << "after: the last";
  EXPECT_EQ(offsets.error_ns(), 7);
  EXPECT_EQ(on_clock_of_rank_0({}, 12), 12);
  EXPECT_EQ(on_clock_of_rank_0({{.at_ns = 5, .offset_ns = -7}, {.at_ns = 5, .offset_ns = 9}}, 6), -1);
}

TEST(Clock, KeepsTheOrderOfTimes) {
  // A clock that loses 1 us in 10: the line has whole nanoseconds only.
  const ClockOffsets offsets = {{.at_ns = 0, .offset_ns = 0}, {.at_ns = 10'000, .offset_ns = -1000}};
  int64_t last = on_clock_of_rank_0(offsets, -1);
  for (int64_t ns = 0; ns <= 10'001; ++ns) {
    const int64_t next = on_clock_of_rank_0(offsets, ns);
    EXPECT_GE(next, last);
    last = next;
  }
}

}  // namespace
}  // namespace cadre::clock_test
