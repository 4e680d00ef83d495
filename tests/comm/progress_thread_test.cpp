// SPDX-License-Identifier: Apache-2.0
#include "comm/progress/progress_thread.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/ranks.hpp"

namespace cadre::progress_thread_test {
namespace {

using test::on_ranks;

TEST(SpareCpu, TheLastOnesInTurn) {
  const std::vector<int> cpus = {2, 3, 6, 7};
  EXPECT_EQ(spare_cpu(cpus, 0, 1, 1), 7);
  EXPECT_EQ(spare_cpu(cpus, 0, 1, 3), 7);
  EXPECT_EQ(spare_cpu(cpus, 0, 2, 1), 7);
  EXPECT_EQ(spare_cpu(cpus, 1, 2, 1), 6);
}

TEST(SpareCpu, NoneUnlessAllRanksHaveOne) {
  const std::vector<int> cpus = {2, 3, 6, 7};
  EXPECT_EQ(spare_cpu(cpus, 0, 1, 4), std::nullopt);
  EXPECT_EQ(spare_cpu(cpus, 0, 3, 1), std::nullopt);
  EXPECT_EQ(spare_cpu(std::vector<int>{0}, 0, 1, 1), std::nullopt);
}

TEST(SpareCpu, SaysWhyThereIsNone) {
  on_ranks([](Communicator& world) {
    const SpareCpu found = find_spare_cpu(world, /*threads=*/100'000);
    EXPECT_FALSE(found.cpu);
    EXPECT_NE(found.why_not, "");
  });
}

// Messages that are too large to be sent eagerly, while a second thread is inside the library, too.
TEST(ProgressThread, LeavesMessagesWhole) {
  on_ranks([](Communicator& world) {
    if (!world.transport().progresses_anywhere()) return;
    const ProgressThread thread(world.transport(), cpus_of_process().front());
    for (int round = 0; round < 20; ++round) {
      std::vector<int64_t> values(300'000, world.rank() + round);
      values = wait(world.all_reduce(std::move(values), ReduceOp::sum));
      const int64_t expected = int64_t{world.size()} * (world.size() - 1) / 2 + int64_t{world.size()} * round;
      ASSERT_EQ(values, std::vector<int64_t>(values.size(), expected)) << "round " << round;
    }
  });
}

}  // namespace
}  // namespace cadre::progress_thread_test
