// SPDX-License-Identifier: Apache-2.0
// Sums over ranks in pieces: the numbers, their order, slices of any size, several operations under way at once.
#include "comm/group/reduction_queue.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "comm/base/random.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::reduction_queue_test {
namespace {

constexpr size_t kLong = 300'003;  // several pieces

// What `rank` has of array `id`: numbers whose float sums depend on the order.
std::vector<float> terms(int id, int rank, size_t size) {
  const Random random(9, "terms", static_cast<uint64_t>(id * 64 + rank));
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) values[i] = static_cast<float>(random.normal(i));
  return values;
}

std::vector<float> sum_in_order(int id, int num_ranks, size_t size) {
  std::vector<float> sum = terms(id, 0, size);
  for (int rank = 1; rank < num_ranks; ++rank) {
    const std::vector<float> other = terms(id, rank, size);
    for (size_t i = 0; i < size; ++i) sum[i] += other[i];
  }
  return sum;
}

// The first rank has nothing, the last one most, and what is behind belongs to none.
RankSlices uneven_slices(size_t size, int num_ranks) {
  RankSlices slices(static_cast<size_t>(num_ranks) + 1, 0);
  for (size_t r = 2; r < slices.size(); ++r)
    slices[r] = static_cast<int64_t>(size * r * r / (slices.size() * slices.size()));
  return slices;
}

using Owned = std::shared_ptr<std::vector<float>>;
Owned own(std::vector<float> values) { return std::make_shared<std::vector<float>>(std::move(values)); }

TEST(EqualSlices, DifferByOneAtMost) {
  EXPECT_EQ(equal_slices(10, 4), (RankSlices{0, 2, 5, 7, 10}));
  EXPECT_EQ(equal_slices(0, 2), (RankSlices{0, 0, 0}));
}

TEST(ReductionQueue, AddsInTheOrderOfRanks) {
  test::on_ranks([](Communicator& world) {
    ReductionQueue queue(world);
    const auto me = static_cast<size_t>(world.rank());
    std::vector<Owned> reduced;
    std::vector<Owned> scattered;
    std::vector<Request> requests;
    const std::vector<size_t> sizes = {7, kLong, 0, 1, 100'000};
    for (size_t id = 0; id < sizes.size(); ++id) {
      reduced.push_back(own(terms(static_cast<int>(id), world.rank(), sizes[id])));
      scattered.push_back(own(*reduced.back()));
      requests.push_back(queue.all_reduce(*reduced.back(), reduced.back()));
      requests.push_back(
          queue.reduce_scatter(*scattered.back(), scattered.back(), uneven_slices(sizes[id], world.size())));
    }
    // The last first: an operation moves on while a later one is waited for.
    for (Request& request :
         std::vector<Request>(std::make_move_iterator(requests.rbegin()), std::make_move_iterator(requests.rend()))) {
      wait(request);
    }
    for (size_t id = 0; id < sizes.size(); ++id) {
      SCOPED_TRACE(id);
      const std::vector<float> sum = sum_in_order(static_cast<int>(id), world.size(), sizes[id]);
      EXPECT_TRUE(*reduced[id] == sum);
      std::vector<float> expected = terms(static_cast<int>(id), world.rank(), sizes[id]);
      const RankSlices slices = uneven_slices(sizes[id], world.size());
      for (int64_t i = slices[me]; i < slices[me + 1]; ++i)
        expected[static_cast<size_t>(i)] = sum[static_cast<size_t>(i)];
      EXPECT_TRUE(*scattered[id] == expected);
    }
  });
}

// The first sum replaces what is there, the second is added; the array may go when the operation has ended.
TEST(ReductionQueue, HandsSumsToASink) {
  test::on_ranks([](Communicator& world) {
    ReductionQueue queue(world);
    const auto me = static_cast<size_t>(world.rank());
    const RankSlices slices = equal_slices(kLong, world.size());
    const int64_t first = slices[me] + 5;
    const auto size = static_cast<size_t>(slices[me + 1] - 3 - first);
    const Owned scattered = own(std::vector<float>(size, 7.0F));
    const Owned whole = own(std::vector<float>(kLong, 7.0F));
    for (int id = 0; id < 2; ++id) {
      Owned values = own(terms(id, world.rank(), kLong));
      Owned others = own(*values);
      const std::weak_ptr<std::vector<float>> kept = values;
      Request one = queue.reduce_scatter(*values, values, slices, {*scattered, first, /*adds=*/id > 0, scattered});
      Request two = queue.all_reduce(*others, others, {*whole, 0, /*adds=*/id > 0, whole});
      values = nullptr;
      wait(one);
      EXPECT_TRUE(kept.expired());
      wait(two);
    }
    const std::vector<float> second = sum_in_order(1, world.size(), kLong);
    std::vector<float> sum = sum_in_order(0, world.size(), kLong);
    for (size_t i = 0; i < kLong; ++i) sum[i] += second[i];
    EXPECT_TRUE(*whole == sum);
    EXPECT_TRUE(std::equal(scattered->begin(), scattered->end(), sum.begin() + first));
  });
}

TEST(ReductionQueue, GathersEachSliceFromItsRank) {
  test::on_ranks([](Communicator& world) {
    ReductionQueue queue(world, DType::bf16);  // values are not rounded
    const RankSlices slices = uneven_slices(kLong, world.size());
    const Owned values = own(terms(0, world.rank(), kLong));
    Request request = queue.all_gather(*values, values, slices);
    wait(request);
    std::vector<float> expected = terms(0, world.rank(), kLong);
    for (int r = 0; r < world.size(); ++r) {
      const std::vector<float> theirs = terms(0, r, kLong);
      for (auto i = static_cast<size_t>(slices[static_cast<size_t>(r)]);
           i < static_cast<size_t>(slices[static_cast<size_t>(r) + 1]); ++i) {
        expected[i] = theirs[i];
      }
    }
    EXPECT_TRUE(*values == expected);
  });
}

// One rank has all of an array, two others halves of another: these go by way of all ranks, side by side with one that does not.
TEST(ReductionQueue, GathersWhatFewRanksHave) {
  test::on_ranks(
      [](Communicator& world) {
        const auto ranks = static_cast<size_t>(world.size());
        ReductionQueue queue(world, DType::bf16);
        RankSlices one(ranks + 1, 0);
        RankSlices two(ranks + 1, 0);
        for (size_t r = 2; r <= ranks; ++r) one[r] = kLong;
        for (size_t r = 1; r <= ranks; ++r) two[r] = r == ranks ? kLong : kLong / 2;
        const std::vector<RankSlices> all = {one, two, equal_slices(kLong, world.size())};
        EXPECT_EQ(ReductionQueue::is_uneven(one), ranks > 2);
        EXPECT_EQ(ReductionQueue::is_uneven(two), ranks > 3) << "one has half and one element more";
        EXPECT_FALSE(ReductionQueue::is_uneven(all[2]));
        std::vector<Owned> values;
        std::vector<Request> requests;
        for (size_t id = 0; id < all.size(); ++id) {
          values.push_back(own(terms(static_cast<int>(id), world.rank(), kLong + 5)));
          requests.push_back(queue.all_gather(*values.back(), values.back(), all[id]));
        }
        for (Request& request : requests) wait(request);
        for (size_t id = 0; id < all.size(); ++id) {
          SCOPED_TRACE(id);
          std::vector<float> expected = terms(static_cast<int>(id), world.rank(), kLong + 5);
          for (size_t r = 0; r < ranks; ++r) {
            const std::vector<float> theirs = terms(static_cast<int>(id), static_cast<int>(r), kLong + 5);
            for (auto i = static_cast<size_t>(all[id][r]); i < static_cast<size_t>(all[id][r + 1]); ++i)
              expected[i] = theirs[i];
          }
          EXPECT_TRUE(*values[id] == expected);
        }
      },
      {2, 3, 4, 5});
}

// Terms and sums are rounded once each, by half of the last of 8 bits.
TEST(ReductionQueue, Bf16RoundsWhatTravels) {
  test::on_ranks([](Communicator& world) {
    ReductionQueue queue(world, DType::bf16);
    const Owned values = own(terms(3, world.rank(), kLong));
    Request request = queue.all_reduce(*values, values);
    wait(request);
    const std::vector<float> sum = sum_in_order(3, world.size(), kLong);
    std::vector<float> bound(kLong);
    for (int rank = 0; rank < world.size(); ++rank) {
      const std::vector<float> theirs = terms(3, rank, kLong);
      for (size_t i = 0; i < kLong; ++i) bound[i] += std::abs(theirs[i]);
    }
    size_t num_rounded = 0;
    for (size_t i = 0; i < kLong; ++i) {
      ASSERT_LE(std::abs((*values)[i] - sum[i]), 0x1p-8f * (2.01f * bound[i]) + 0x1p-126f) << i;
      if ((*values)[i] != sum[i]) ++num_rounded;
    }
    if (world.size() > 1) {
      EXPECT_GT(num_rounded, kLong / 2);
    }
    // All ranks have the same bits.
    const auto first = wait(world.broadcast(*values, 0));
    EXPECT_TRUE(*values == first);
  });
}

}  // namespace
}  // namespace cadre::reduction_queue_test
