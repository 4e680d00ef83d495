// SPDX-License-Identifier: Apache-2.0
// The figures of balance against hand-computed ones, and the reduction on every rank against the totals worked out.
#include "runtime/observe/step_metrics.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::step_metrics_test {
namespace {

using test::on_ranks;
using testing::HasSubstr;

// A few roundings of numbers of order one.
constexpr double kTolerance = 1e-14;

TEST(BalanceFigures, OfAnUnevenLoad) {
  // Mean 12.5, mean square 246.25: the variance is 90 and cv^2 = 90 / 156.25.
  const BalanceFigures figures = balance_figures(std::vector<int64_t>{30, 25, 15, 10, 8, 6, 4, 2});
  EXPECT_NEAR(figures.cv * figures.cv, 0.576, kTolerance);
  EXPECT_NEAR(figures.max_vio, 1.4, kTolerance);
  EXPECT_EQ(figures.min, 2);
  EXPECT_EQ(figures.max, 30);
  EXPECT_EQ(figures.mean, 12.5);
  EXPECT_EQ(figures.dead, 0);
  EXPECT_NEAR(balance_figures(std::vector<int64_t>{14, 13, 12, 13, 12, 13, 11, 12}).max_vio, 0.12, kTolerance);
}

TEST(BalanceFigures, EntropyIsAShareOfTheGreatest) {
  // Shares 1/8, 1/4, 3/8, 1/4 have 3/8 + 1/2 + 3/8 (3 - log2 3) + 1/2 bits, of at most 2.
  const double bits = 0.375 + 0.5 + 0.375 * (3.0 - std::log2(3.0)) + 0.5;
  EXPECT_NEAR(balance_figures(std::vector<int64_t>{1, 2, 3, 2}).entropy, bits / 2.0, kTolerance);
  EXPECT_NEAR(balance_figures(std::vector<int64_t>{7, 7, 7}).entropy, 1.0, kTolerance);
  EXPECT_EQ(balance_figures(std::vector<int64_t>{5}).entropy, 1.0);
}

TEST(BalanceFigures, AllOnOne) {
  const BalanceFigures figures = balance_figures(std::vector<int64_t>{0, 8, 0, 0});
  EXPECT_NEAR(figures.cv, std::sqrt(3.0), kTolerance);
  EXPECT_EQ(figures.max_vio, 3.0);
  EXPECT_EQ(figures.entropy, 0.0);
  EXPECT_EQ(figures.dead, 3);
}

TEST(BalanceFigures, OfNothing) {
  const BalanceFigures zeros = balance_figures(std::vector<int64_t>{0, 0, 0});
  EXPECT_EQ(zeros.dead, 3);
  EXPECT_EQ(balance_figures({}).dead, 0);
  for (const BalanceFigures& figures : {zeros, balance_figures({})}) {
    EXPECT_EQ(figures.cv, 0.0);
    EXPECT_EQ(figures.max_vio, 0.0);
    EXPECT_EQ(figures.mean, 0.0);
    EXPECT_EQ(figures.max, 0);
    EXPECT_EQ(figures.entropy, 0.0);
  }
}

TEST(GlobalStep, PutsLayersTogether) {
  GlobalStep step;
  step.expert_counts = {{4, 0}, {2, 2}};
  const BalanceFigures figures = step.expert_balance();
  EXPECT_NEAR(figures.cv, std::sqrt(2.0) / 2.0, kTolerance);  // mean 2, variance (4 + 4) / 4
  EXPECT_EQ(figures.max_vio, 1.0);
  EXPECT_EQ(figures.dead, 1);
  EXPECT_NEAR(figures.entropy, 0.5, kTolerance);  // 0 in the first layer, 1 in the second
}

TEST(GlobalStep, DropRateIsOfAllSlotsWanted) {
  GlobalStep step;
  EXPECT_EQ(step.drop_rate(), 0.0);
  step.slots_planned = 6;
  step.slots_dropped = 2;
  step.expert_counts = {{1, 1}, {4, 0}};
  step.layer_dropped = {2, 0};
  EXPECT_EQ(step.drop_rate(), 0.25);
  EXPECT_EQ(step.drop_rate(0), 0.5);
  EXPECT_EQ(step.drop_rate(1), 0.0);
}

GlobalStep reduce(const Communicator& world, const LocalStep& local) {
  StepReduction started(world, local);
  StepReduction reduction = std::move(started);  // its memory must stay where it is
  wait(reduction.request(), 60.0);
  return reduction.finish();
}

// Rank r has r + 1 units of work: in layer 0 a slot for experts 0 and 1 each, in layer 1 two for expert 3. All but the
// last rank compute one slot, of layer 1; the last computes the rest.
LocalStep example(int rank, int num_ranks) {
  const int64_t units = rank + 1;
  const int64_t total_units = int64_t{num_ranks} * (num_ranks + 1) / 2;
  const bool last = rank == num_ranks - 1;
  LocalStep local;
  local.loss_sum = 0.5 * rank;
  local.balance_loss = 0.25;
  local.num_tokens = units;
  local.loss_weight = static_cast<double>(units);
  local.slots_planned = 4 * units;
  local.slots_received = {last ? 2 * total_units : 0, last ? 2 * total_units - (num_ranks - 1) : 1};
  local.slots_dropped = {0, 2 * rank};
  local.rerouted = rank;
  local.crossing_bytes = (int64_t{1} << 40) + rank;
  local.expert_counts = {{units, units, 0, 0}, {0, 0, 0, 2 * units}};
  local.last_step_ms = 10.0 + rank;
  local.last_wait_ms = 0.5 * rank;
  return local;
}

TEST(StepReduction, GivesEveryRankTheTotals) {
  on_ranks([](Communicator& world) {
    const int ranks = world.size();
    const GlobalStep global = reduce(world, example(world.rank(), ranks));
    const int64_t units = ranks * (ranks + 1) / 2;
    const int64_t rank_sum = ranks * (ranks - 1) / 2;
    ASSERT_GT(units, 0);
    EXPECT_EQ(global.loss, 0.5 * static_cast<double>(rank_sum) / static_cast<double>(units));
    EXPECT_EQ(global.balance_loss, 0.25 * ranks);
    EXPECT_EQ(global.num_tokens, units);
    EXPECT_EQ(global.slots_planned, 4 * units);
    EXPECT_EQ(global.slots_received, 4 * units);
    EXPECT_EQ(global.slots_dropped, 2 * rank_sum);
    EXPECT_EQ(global.rerouted, rank_sum);
    EXPECT_EQ(global.layer_dropped, (std::vector<int64_t>{0, 2 * rank_sum}));
    EXPECT_EQ(global.crossing_bytes, (int64_t{1} << 40) * ranks + rank_sum);
    const std::vector<std::vector<int64_t>> counts = {{units, units, 0, 0}, {0, 0, 0, 2 * units}};
    EXPECT_EQ(global.expert_counts, counts);
    ASSERT_EQ(global.device_slots.size(), static_cast<size_t>(ranks));
    for (int rank = 0; rank < ranks; ++rank) {
      const LocalStep local = example(rank, ranks);
      EXPECT_EQ(global.layer_device_slots[0][rank], local.slots_received[0]) << "rank " << rank;
      EXPECT_EQ(global.layer_device_slots[1][rank], local.slots_received[1]) << "rank " << rank;
      EXPECT_EQ(global.device_slots[rank], local.slots_received[0] + local.slots_received[1]) << "rank " << rank;
      EXPECT_EQ(global.device_bytes[rank], local.crossing_bytes) << "rank " << rank;
      EXPECT_EQ(global.device_step_ms[rank], local.last_step_ms) << "rank " << rank;
      EXPECT_EQ(global.device_wait_ms[rank], local.last_wait_ms) << "rank " << rank;
    }
  });
}

// Only the last rank has a token.
TEST(StepReduction, TakesRanksWithoutTokens) {
  on_ranks([](Communicator& world) {
    LocalStep local;
    local.expert_counts = {{0, 0, 0}};
    local.slots_received = {0};
    local.slots_dropped = {0};
    if (world.rank() == world.size() - 1) {
      local.loss_sum = 1.5;
      local.num_tokens = 1;
      local.loss_weight = 1.0;
      local.slots_planned = 2;
      local.slots_received = {2};
      local.expert_counts = {{0, 1, 1}};
    }
    const GlobalStep global = reduce(world, local);
    EXPECT_EQ(global.loss, 1.5);
    EXPECT_EQ(global.expert_counts.front(), (std::vector<int64_t>{0, 1, 1}));
  });
}

TEST(StepReduction, TakesAModelWithoutExpertsAndAStepWithoutTokens) {
  on_ranks([](Communicator& world) {
    const GlobalStep global = reduce(world, LocalStep{});
    EXPECT_EQ(global.loss, 0.0);
    EXPECT_TRUE(global.expert_counts.empty());
    EXPECT_EQ(global.device_slots.size(), static_cast<size_t>(world.size()));
  });
}

std::string refusal_of(const Communicator& world, const LocalStep& local) {
  try {
    reduce(world, local);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::internal);
    EXPECT_FALSE(error.hint().empty());
    return error.what();
  }
  return "no error";
}

// One rank is wrong by one slot, and all ranks must say so.
TEST(StepReduction, FindsSlotsThatAreNotConserved) {
  on_ranks([](Communicator& world) {
    const int ranks = world.size();
    const int64_t slots = int64_t{2} * ranks * (ranks + 1);
    const bool wrong = world.rank() == ranks / 2;
    LocalStep lost = example(world.rank(), ranks);
    lost.slots_received[1] -= wrong ? 1 : 0;
    EXPECT_THAT(refusal_of(world, lost), HasSubstr(fmt::format("{} planned by the senders, {} received by the experts, "
                                                               "{} counted by the routers",
                                                               slots, slots - 1, slots)));
    LocalStep extra = example(world.rank(), ranks);
    extra.slots_planned += wrong ? 1 : 0;
    EXPECT_THAT(refusal_of(world, extra), HasSubstr(fmt::format("{} planned", slots + 1)));
    LocalStep miscounted = example(world.rank(), ranks);
    miscounted.expert_counts[1][2] += wrong ? 1 : 0;
    EXPECT_THAT(refusal_of(world, miscounted), HasSubstr(fmt::format("{} counted", slots + 1)));
  });
}

}  // namespace
}  // namespace cadre::step_metrics_test
