// SPDX-License-Identifier: Apache-2.0
// Sums that arrive at owners alone: the numbers, in the order of guests, and nothing else is written.
#include "comm/group/owner_sum.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "comm/base/random.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::owner_sum_test {
namespace {

constexpr size_t kSizes[] = {1000, 1, 0, 700'000, 37};  // one of many pieces

// Numbers whose float sums depend on the order.
std::vector<float> part_of_rank(int owner, size_t which, int rank) {
  const Random random(6, "owned", static_cast<uint64_t>(owner * 1000 + rank * 10) + which);
  std::vector<float> values(kSizes[which]);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i));
  return values;
}

// All other ranks but one are guests, the last rank first.
std::vector<int> guests_of(int owner, size_t which, int num_ranks) {
  std::vector<int> guests;
  for (int rank = num_ranks - 1; rank >= 0; --rank) {
    const bool is_left_out = rank == static_cast<int>(which) % num_ranks && num_ranks > 2;
    if (rank != owner && !is_left_out) guests.push_back(rank);
  }
  return guests;
}

TEST(OwnerSum, adds_guests_in_order_to_the_owner) {
  test::on_ranks([](Communicator& world) {
    std::vector<std::vector<float>> values;
    std::vector<OwnedValues> all;
    values.reserve(static_cast<size_t>(world.size()) * std::size(kSizes));
    for (int owner = 0; owner < world.size(); ++owner) {
      for (size_t which = 0; which < std::size(kSizes); ++which) {
        const std::vector<int> guests = guests_of(owner, which, world.size());
        values.push_back(part_of_rank(owner, which, world.rank()));
        if (world.rank() == owner) {
          all.push_back({values.back(), nullptr, owner, guests});
        } else if (std::ranges::find(guests, world.rank()) != guests.end()) {
          all.push_back({values.back(), nullptr, owner, {world.rank()}});
        }
      }
    }
    Request sum = sum_at_owners(world, all, 3);
    wait(sum);
    for (int owner = 0; owner < world.size(); ++owner) {
      for (size_t which = 0; which < std::size(kSizes); ++which) {
        std::vector<float> expected = part_of_rank(owner, which, world.rank());
        if (world.rank() == owner) {
          for (const int guest : guests_of(owner, which, world.size())) {
            const std::vector<float> part = part_of_rank(owner, which, guest);
            for (size_t i = 0; i < part.size(); ++i) expected[i] += part[i];
          }
        }
        EXPECT_EQ(values[static_cast<size_t>(owner) * std::size(kSizes) + which], expected) << owner << " " << which;
      }
    }
  });
}

}  // namespace
}  // namespace cadre::owner_sum_test
