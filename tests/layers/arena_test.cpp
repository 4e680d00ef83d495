// SPDX-License-Identifier: Apache-2.0
// Where tensors of an arena lie inside scopes of either kind.
#include "layers/tensor/arena.hpp"

#include <gtest/gtest.h>

namespace cadre::arena_test {
namespace {

constexpr size_t kBytes = 64;

Tensor take(Arena& arena) { return arena.take("x", DType::f32, {16}); }

TEST(WorkScope, takes_from_the_arena_for_work_and_gives_back) {
  Arena kept;
  Arena work;
  kept.set_work(&work);
  const Tensor before = take(kept);
  std::byte* inside = nullptr;
  {
    const WorkScope scope(kept);
    inside = take(kept).raw();
    {
      const WorkScope inner(kept);
      EXPECT_EQ(take(kept).raw(), inside + kBytes);
    }
    const ArenaScope inner(kept);
    EXPECT_EQ(take(kept).raw(), inside + kBytes);
    EXPECT_EQ(kept.owner(), work.owner());
  }
  EXPECT_EQ(take(kept).raw(), before.raw() + kBytes);
  EXPECT_NE(kept.owner(), work.owner());
  EXPECT_EQ(take(work).raw(), inside) << "all was given back";
  EXPECT_EQ(kept.peak_bytes(), 2 * kBytes);
  EXPECT_EQ(work.peak_bytes(), 2 * kBytes);
}

// Two micro-batches with tensors of their own, one after the other at work.
TEST(WorkScope, arenas_take_turns_with_one_for_work) {
  Arena first;
  Arena second;
  Arena work;
  first.set_work(&work);
  std::byte* there = nullptr;
  {
    const WorkScope scope(first);
    there = take(first).raw();
  }
  first.set_work(nullptr);
  second.set_work(&work);
  const WorkScope scope(second);
  EXPECT_EQ(take(second).raw(), there);
}

TEST(WorkScope, is_a_plain_scope_without_an_arena_for_work) {
  Arena arena;
  const Tensor before = take(arena);
  {
    const WorkScope scope(arena);
    EXPECT_EQ(take(arena).raw(), before.raw() + kBytes);
  }
  EXPECT_EQ(take(arena).raw(), before.raw() + kBytes);
}

TEST(WorkScope, a_dry_run_counts_both) {
  Arena kept(Arena::Mode::dry_run);
  Arena work(Arena::Mode::dry_run);
  kept.set_work(&work);
  take(kept);
  {
    const WorkScope scope(kept);
    take(kept);
    take(kept);
  }
  EXPECT_EQ(kept.peak_table().at("x"), kBytes);
  EXPECT_EQ(work.peak_table().at("x"), 2 * kBytes);
}

}  // namespace
}  // namespace cadre::arena_test
