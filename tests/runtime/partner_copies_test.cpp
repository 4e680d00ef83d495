// SPDX-License-Identifier: Apache-2.0
// Ranks that are left find all state in the copies of the dead, on fewer ranks, bit by bit; or they change nothing.
#include "runtime/checkpoint/partner_copies.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "tests/support/checkpoints.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::partner_copies_test {
namespace {

using namespace test;

bool keeps_none_alone(const Parameter& /*parameter*/) { return false; }

// What those get back that are not in `dead`; nothing on the others.
std::optional<int64_t> restored_without(const std::vector<int>& dead, const Communicator& world,
                                        const PartnerCopies& copies, bool expect_all) {
  const bool lives = std::ranges::find(dead, world.rank()) == dead.end();
  const Communicator group = world.split(lives ? 0 : 1, world.rank(), "survivors");
  if (!lives) return std::nullopt;
  ModelRank rank(small_config(), group.size(), group.rank());
  poison(rank);
  const uint64_t version = rank.store.parameters().front()->version;
  const auto step = copies.restore(group, kDeadlineSeconds, rank.store, rank.optimizer);
  for (const NamedTensor& tensor : rank.tensors()) {
    EXPECT_TRUE(expect_all ? is_filled(tensor) : is_poison(tensor)) << tensor.name;
  }
  EXPECT_EQ(rank.store.parameters().front()->version > version, expect_all);
  return step ? std::optional(step->step) : std::nullopt;
}

TEST(PartnerCopies, any_rank_may_die_and_two_that_are_no_neighbours) {
  on_ranks(
      [](Communicator& world) {
        const ModelRank rank(small_config(), world.size(), world.rank());
        fill(rank);
        PartnerCopies copies;
        copies.take(world, kDeadlineSeconds, {.step = 5}, rank.store, rank.optimizer, keeps_none_alone);
        EXPECT_GT(copies.bytes(), 0U);
        poison(rank);  // the copies do not look at it again
        for (const std::vector<int>& dead : std::vector<std::vector<int>>{{}, {0}, {1}, {2}, {3}, {0, 2}, {1, 3}}) {
          const bool lives = std::ranges::find(dead, world.rank()) == dead.end();
          EXPECT_EQ(restored_without(dead, world, copies, true), lives ? std::optional<int64_t>(5) : std::nullopt);
        }
      },
      {4});
}

TEST(PartnerCopies, what_the_run_knows_comes_back) {
  on_ranks(
      [](Communicator& world) {
        ModelRank rank(small_config(), world.size(), world.rank());
        PartnerCopies copies;
        rank.optimizer.set_history({2, 4}, {3, 2, 1});
        const TrainProgress progress = {.step = 5, .tokens_seen = 640, .data = {.pass = 1, .window = 7, .seed = 9}};
        copies.take(world, kDeadlineSeconds, progress, rank.store, rank.optimizer, keeps_none_alone);
        rank.optimizer.set_history({6}, {4, 4, 4});
        EXPECT_EQ(copies.restore(world, kDeadlineSeconds, rank.store, rank.optimizer), progress);
        EXPECT_EQ(rank.optimizer.skipped_steps(), (std::vector<int64_t>{2, 4}));
        EXPECT_EQ(rank.optimizer.updates(), (UpdateCounts{3, 2, 1}));
      },
      {4});
}

// Each rank has the moments of some of the shared parameters; those that are left want all of them.
TEST(PartnerCopies, sharded_moments_are_with_the_partner) {
  on_ranks(
      [](Communicator& world) {
        const auto is_mine = [&](const Parameter& parameter) {
          return parameter.placement == Placement::expert ||
                 hash_name(parameter.name()) % 4 == static_cast<uint64_t>(world.rank());
        };
        const ModelRank rank(small_config(), world.size(), world.rank(), DType::f32, is_mine);
        fill(rank);
        PartnerCopies copies;
        copies.take(world, kDeadlineSeconds, {.step = 5}, rank.store, rank.optimizer, is_mine);
        for (const std::vector<int>& dead : std::vector<std::vector<int>>{{}, {0}, {3}, {0, 2}, {1, 3}}) {
          const bool lives = std::ranges::find(dead, world.rank()) == dead.end();
          EXPECT_EQ(restored_without(dead, world, copies, true), lives ? std::optional<int64_t>(5) : std::nullopt);
        }
        copies.take(world, kDeadlineSeconds, {.step = 6}, rank.store, rank.optimizer, keeps_none_alone);
        copies.take(world, kDeadlineSeconds, {.step = 7}, rank.store, rank.optimizer, keeps_none_alone);
        EXPECT_EQ(restored_without({1}, world, copies, false), std::nullopt);
      },
      {4});
}

TEST(PartnerCopies, what_died_with_its_partner_is_gone) {
  on_ranks(
      [](Communicator& world) {
        const ModelRank rank(small_config(), world.size(), world.rank());
        fill(rank);
        PartnerCopies copies;
        EXPECT_EQ(restored_without({}, world, copies, false), std::nullopt);  // nothing was taken
        copies.take(world, kDeadlineSeconds, {.step = 5}, rank.store, rank.optimizer, keeps_none_alone);
        EXPECT_EQ(restored_without({1, 2}, world, copies, false), std::nullopt);
        EXPECT_EQ(restored_without({0, 3}, world, copies, false), std::nullopt);
      },
      {4});
}

TEST(PartnerCopies, the_newest_step_that_all_have_counts) {
  on_ranks(
      [](Communicator& world) {
        const ModelRank rank(small_config(), world.size(), world.rank());
        PartnerCopies copies;
        fill(rank);
        copies.take(world, kDeadlineSeconds, {.step = 5}, rank.store, rank.optimizer, keeps_none_alone);
        // Step 6 comes to some of the ranks only.
        const Communicator some = world.split(world.rank() < 3 ? 0 : 1, world.rank(), "some");
        poison(rank);
        if (world.rank() < 3)
          copies.take(some, kDeadlineSeconds, {.step = 6}, rank.store, rank.optimizer, keeps_none_alone);
        const auto expected = world.rank() == 0 ? std::nullopt : std::optional<int64_t>(5);
        EXPECT_EQ(restored_without({0}, world, copies, true), expected);
        // A third takes the place of the oldest.
        fill(rank);
        copies.take(world, kDeadlineSeconds, {.step = 7}, rank.store, rank.optimizer, keeps_none_alone);
        EXPECT_EQ(restored_without({}, world, copies, true), 7);
      },
      {4});
}

}  // namespace
}  // namespace cadre::partner_copies_test
