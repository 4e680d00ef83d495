// SPDX-License-Identifier: Apache-2.0
// Early stopping: which evaluation is the best, when a run is over, what a later job finds; and a run that ends so.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/checkpoint/directory.hpp"
#include "runtime/checkpoint/manifest.hpp"
#include "runtime/train/evaluate.hpp"
#include "runtime/train/saver.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::best_evaluation_test {
namespace {

namespace fs = std::filesystem;

TEST(BestEvaluation, CountsEvaluationsWithoutALowerLoss) {
  test::on_ranks(
      [](Communicator& world) {
        const test::SharedDirectory folder(world);
        BestEvaluation best(world, folder.path(), 0, 2, 10);
        EXPECT_FALSE(best.is_over(10));
        EXPECT_TRUE(best.add(10, 3.0));
        EXPECT_TRUE(best.add(20, 2.0));
        EXPECT_FALSE(best.add(30, 2.0));
        EXPECT_FALSE(best.is_over(30));
        EXPECT_FALSE(best.add(40, std::nan("")));
        EXPECT_TRUE(best.is_over(40));
        EXPECT_EQ(best.step(), 20);
        if (world.rank() == 0) best.write();
        Request written = world.barrier();
        wait(written);
        BestEvaluation later(world, folder.path(), 40, 2, 10);
        EXPECT_EQ(later.step(), 20);
        EXPECT_EQ(later.loss(), 2.0);
        EXPECT_TRUE(later.is_over(40));
        EXPECT_TRUE(later.add(20, 2.5)) << "the same step, measured anew, stays the best";
        // A run that went back behind the best step, or begins anew, has none.
        EXPECT_EQ(BestEvaluation(world, folder.path(), 15, 2, 10).step(), 0);
        EXPECT_EQ(BestEvaluation(world, folder.path(), 0, 2, 10).step(), 0);
        BestEvaluation endless(world, folder.path(), 40, 0, 10);
        endless.add(10, 1.0);
        EXPECT_FALSE(endless.is_over(1000));
      },
      {1, 3});
}

// With a learning rate that grows without bound the loss rises soon.
TEST(BestEvaluation, EndsARunAndKeepsItsCheckpoint) {
  test::on_ranks(
      [](Communicator& world) {
        const test::RunFolder folder(world);
        RunConfig config = test::small_run(folder.path());
        config.train.steps = 200;
        config.train.schedule = "linear";
        config.train.warmup_steps = 200;
        config.train.learning_rate = 2.0;
        config.train.eval_every = 5;
        config.train.patience = 2;
        config.checkpoint.every = 5;
        config.checkpoint.keep = 1;
        config.log.every = 1000;
        int64_t last = 0;
        {
          Trainer trainer(world.duplicate("run"), config);
          EXPECT_EQ(trainer.run(), RunEnd::finished);
          last = trainer.steps_done();
        }
        ASSERT_LT(last, 200);
        const fs::path root = checkpoint_root(config);
        const int64_t best = read_manifest(root / "best").step;
        EXPECT_GT(best, 0);
        EXPECT_EQ(last, best + 10);
        EXPECT_EQ(read_manifest(root / "latest").step, last);
        EXPECT_EQ(list_checkpoints(root).size(), 2U) << "others are pruned";
        // The same command evaluates once more and ends.
        config.checkpoint.resume = "auto";
        Trainer again(world.duplicate("again"), config);
        EXPECT_EQ(again.run(), RunEnd::finished);
        EXPECT_EQ(again.steps_done(), last);
        EXPECT_EQ(read_manifest(root / "best").step, best);
      },
      {1, 2});
}

}  // namespace
}  // namespace cadre::best_evaluation_test
