// SPDX-License-Identifier: Apache-2.0
// Sharding of the optimiser's state: who keeps what, the bits of the run without it, and checkpoints for any other ranks.
#include "runtime/parallel/optimizer_shards.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::optimizer_shards_test {
namespace {

using test::outcome_of;
using test::RunFolder;
using test::small_run;

std::vector<int64_t> sums_of(const std::vector<int64_t>& sizes, const std::vector<int>& owners, int num_ranks) {
  std::vector<int64_t> sums(static_cast<size_t>(num_ranks));
  for (size_t i = 0; i < sizes.size(); ++i) sums[static_cast<size_t>(owners[i])] += sizes[i];
  return sums;
}

std::vector<int> share_out(const std::vector<int64_t>& sizes, int num_ranks) {
  std::vector<int64_t> kept(static_cast<size_t>(num_ranks));
  return cadre::share_out(sizes, kept);
}

TEST(ShareOut, TheLargestFirstToWhoHasLeast) {
  EXPECT_EQ(share_out({3, 9, 5, 4, 1}, 2), (std::vector<int>{0, 0, 1, 1, 1}));
  EXPECT_EQ(share_out({7, 7, 7}, 3), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(share_out({5, 2}, 4), (std::vector<int>{0, 1}));
  EXPECT_EQ(share_out({}, 3), std::vector<int>{});
  EXPECT_EQ(share_out({4, 4}, 1), (std::vector<int>{0, 0}));
  std::vector<int64_t> kept = {5, 0, 3};
  EXPECT_EQ(cadre::share_out({2, 4}, kept), (std::vector<int>{2, 1}));
  EXPECT_EQ(kept, (std::vector<int64_t>{5, 4, 5}));
}

// The last parameter that a rank got was given to the one with least, so no two differ by more than the largest.
TEST(ShareOut, SumsAreEqualButForOneParameter) {
  for (const int num_ranks : {2, 3, 7, 64}) {
    for (uint64_t id = 0; id < 50; ++id) {
      const Random random(1, "sizes", id);
      std::vector<int64_t> sizes(20 + 10 * id);
      for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = static_cast<int64_t>(1 + random.below(1 << (i % 20), i));
      const std::vector<int64_t> sums = sums_of(sizes, share_out(sizes, num_ranks), num_ranks);
      EXPECT_LE(std::ranges::max(sums) - std::ranges::min(sums), std::ranges::max(sizes));
    }
  }
}

int64_t moment_elements(Communicator world, const RunConfig& config) {
  Trainer trainer(std::move(world), config);
  int64_t count = 0;
  for (const Parameter* parameter : trainer.worker().store().parameters()) {
    if (parameter->placement != Placement::buffer && trainer.worker().shards().keeps(*parameter)) {
      count += parameter->value.numel();
    }
  }
  return count;
}

TEST(OptimizerShards, EachMomentIsKeptOnce) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.parallel.expert = 1;
        const int64_t mine = moment_elements(world.duplicate("sharded"), config);
        config.parallel.shard_optimizer = false;
        const int64_t all = moment_elements(world.duplicate("whole"), config);
        EXPECT_EQ(wait(world.all_reduce(mine, ReduceOp::sum)), all);
        EXPECT_LE(static_cast<double>(mine), 1.02 * static_cast<double>(all) / world.size());
      },
      {2, 3, 4});
}

// Experts on all ranks, on two, on one; pipelines; a step that is skipped; frozen parts.
TEST(OptimizerShards, ChangeNoBit) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        std::vector<RunConfig> configs(3, small_run(folder.path()));
        configs[0].parallel.expert = 1;
        configs[1].train.stages = "gate:2,experts:2,all";
        configs[1].parallel.expert = 1;
        if (world.size() % 2 == 0) {
          configs.push_back(configs[0]);
          configs.back().parallel.expert = 2;
          configs.push_back(configs[0]);
          configs.back().parallel.pipeline = 2;
          configs.back().parallel.schedule = "dualpipev";
          configs.back().model.num_hidden_layers = 4;
          configs.back().model.tie_word_embeddings = true;
          configs.back().train.micro_batches = 4;
        }
        for (size_t i = 0; i < configs.size(); ++i) {
          SCOPED_TRACE(i);
          RunConfig whole = configs[i];
          whole.parallel.shard_optimizer = false;
          EXPECT_EQ(outcome_of(world.duplicate("sharded"), configs[i], 6),
                    outcome_of(world.duplicate("whole"), whole, 6));
        }
      },
      {2, 3, 4});
}

// Rounded on their way, summed in fp32: almost the same run, and all ranks agree on it.
TEST(OptimizerShards, GradientsTravelInBf16) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.parallel.expert = 1;
        const test::Outcome expected = outcome_of(world.duplicate("fp32"), config, 8);
        config.exchange.gradients = "bf16";
        const test::Outcome rounded = outcome_of(world.duplicate("bf16"), config, 8);
        EXPECT_NE(rounded.losses.back(), expected.losses.back());
        for (size_t i = 0; i < expected.losses.size(); ++i) {
          EXPECT_NEAR(rounded.losses[i], expected.losses[i], 2e-3 * expected.losses[i]) << "step " << i + 1;
        }
        EXPECT_EQ(wait(world.broadcast(rounded.weights.front(), 0)), rounded.weights.front());
      },
      {2, 3});
}

// Steps 1 to 3 on one set of ranks, 4 to 6 on another; all three ways from one text.
TEST(OptimizerShards, AnyRanksGoOnFromAnyCheckpoint) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.parallel.expert = 1;
        config.out += fmt::format(".{}", world.rank());  // each rank has its own ranks, which are threads
        const std::vector<double> expected = test::train_on_threads(1, config, 6);
        for (const auto& [before, after] : {std::pair{4, 3}, {3, 4}, {4, 1}, {1, 2}}) {
          for (const bool sharded_before : {false, true}) {
            SCOPED_TRACE(fmt::format("{} ranks, then {}", before, after));
            RunConfig first = config;
            first.out += fmt::format(".{}{}{}", before, after, sharded_before);
            first.parallel.shard_optimizer = sharded_before;
            test::train_on_threads(before, first, 3, /*save=*/true);
            RunConfig second = test::resumed(first);
            second.parallel.shard_optimizer = !sharded_before;
            const std::vector<double> losses = test::train_on_threads(after, second, 3);
            test::expect_close({expected.begin() + 3, expected.end()}, losses);
          }
        }
      },
      {1});
}

}  // namespace
}  // namespace cadre::optimizer_shards_test
