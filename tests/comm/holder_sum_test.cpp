// SPDX-License-Identifier: Apache-2.0
// Sums over sets of ranks that overlap, several under way at once: the numbers, and the same bits on all holders.
#include "comm/group/holder_sum.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "comm/base/random.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::holder_sum_test {
namespace {

// What `rank` holds of value `id`: numbers whose float sums depend on the order.
std::vector<float> contribution(int id, int rank, size_t size) {
  const Random random(5, "held", static_cast<uint64_t>(id * 64 + rank));
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) values[i] = static_cast<float>(random.normal(i));
  return values;
}

struct Held {
  std::vector<int> holders;
  size_t size;
};

// Sets of holders of all kinds on `num_ranks`, in the same order on all ranks; sizes down to nothing.
std::vector<Held> sets_of(int num_ranks) {
  std::vector<Held> sets;
  const size_t sizes[] = {1000, 3, 1, 0, 7};
  for (int mask = 1; mask < 1 << num_ranks; ++mask) {
    std::vector<int> holders;
    for (int rank = 0; rank < num_ranks; ++rank) {
      if ((mask >> rank & 1) != 0) holders.push_back(rank);
    }
    sets.push_back({holders, sizes[static_cast<size_t>(mask) % std::size(sizes)]});
  }
  return sets;
}

std::vector<float> sum_in_order(const Held& set, int id) {
  std::vector<float> sum = contribution(id, set.holders.front(), set.size);
  for (size_t j = 1; j < set.holders.size(); ++j) {
    const std::vector<float> other = contribution(id, set.holders[j], set.size);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
  }
  return sum;
}

TEST(HolderSum, adds_in_the_order_of_holders) {
  test::on_ranks([](Communicator& world) {
    constexpr int kBuckets = 3;
    const std::vector<Held> sets = sets_of(world.size());
    std::vector<std::vector<std::vector<float>>> values(kBuckets);
    std::vector<Request> requests;
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
      values[bucket].resize(sets.size());
      std::vector<HeldValues> held;
      for (size_t i = 0; i < sets.size(); ++i) {
        const std::vector<int>& holders = sets[i].holders;
        if (std::ranges::find(holders, world.rank()) == holders.end()) continue;
        std::vector<float>& mine = values[bucket][i];
        mine = contribution(bucket * 100 + static_cast<int>(i), world.rank(), sets[i].size);
        held.push_back({mine, nullptr, holders});
      }
      std::vector<Request> after;
      after.push_back(world.barrier());
      requests.push_back(sum_over_holders(world, std::move(held), bucket, std::move(after)));
    }
    if (world.rank() % 2 == 1) {  // some ranks all at once, the others one after the other
      Request all = all_of(std::move(requests));
      wait(all);
    } else {
      for (Request& request : requests) wait(request);
    }
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
      for (size_t i = 0; i < sets.size(); ++i) {
        if (std::ranges::find(sets[i].holders, world.rank()) == sets[i].holders.end()) continue;
        EXPECT_EQ(values[bucket][i], sum_in_order(sets[i], bucket * 100 + static_cast<int>(i)));
      }
    }
  });
}

TEST(HolderSum, begins_when_what_comes_before_is_complete) {
  test::on_ranks(
      [](Communicator& world) {
        std::vector<float> mine = {1.0F, 10.0F, 100.0F};
        const Communicator other = world.duplicate("before");
        std::vector<Request> after;
        after.push_back(other.all_reduce(std::span(mine), nullptr, ReduceOp::sum));
        Request sum = sum_over_holders(world, {{mine, nullptr, {0, 1}}}, 0, std::move(after));
        wait(sum);
        EXPECT_EQ(mine, (std::vector<float>{4.0F, 40.0F, 400.0F}));  // twice the sum of two
      },
      {2});
}

}  // namespace
}  // namespace cadre::holder_sum_test
