// SPDX-License-Identifier: Apache-2.0
// The distributed selection against a plain sort of all candidates, with ties and with ranks that have none.
#include "layers/router/keep_best.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>

#include "comm/base/random.hpp"
#include "comm/progress/engine.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::keep_best_test {
namespace {

constexpr int kColumns = 5;
constexpr int64_t kTokens = 60;

// Few distinct numbers, some negative, and of columns 0 and 1 all the same: ties at every cut.
std::vector<Candidate> all_candidates() {
  std::vector<Candidate> all;
  for (int64_t token = 0; token < kTokens; ++token) {
    const Random random(1, "candidates", static_cast<uint64_t>(token));
    for (int32_t column = 0; column < kColumns; ++column) {
      if (random.uniform(static_cast<uint64_t>(column)) < 0.3) continue;
      const double number = column < 2 ? 0.5 : 0.25 * static_cast<double>(random.below(7, 100 + column)) - 0.75;
      all.push_back({column, sort_key(number), token});
    }
  }
  return all;
}

std::vector<uint8_t> by_sorting(const std::vector<Candidate>& all, const std::vector<int64_t>& limits) {
  std::vector<size_t> order(all.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::sort(order, [&](size_t a, size_t b) {
    return all[a].key != all[b].key ? all[a].key > all[b].key : all[a].token < all[b].token;
  });
  std::vector<uint8_t> kept(all.size(), 0);
  std::vector<int64_t> used(limits.size(), 0);
  for (const size_t i : order) {
    const auto column = static_cast<size_t>(all[i].column);
    if (used[column]++ < limits[column]) kept[i] = 1;
  }
  return kept;
}

TEST(KeepBest, equals_a_sort_of_all_candidates) {
  const std::vector<Candidate> all = all_candidates();
  for (const std::vector<int64_t>& limits :
       {std::vector<int64_t>{7, 0, 11, 1, 1000}, std::vector<int64_t>{1, 40, 20, 30, 3}}) {
    const std::vector<uint8_t> expected = by_sorting(all, limits);
    test::on_ranks([&](Communicator& world) {
      Lane lane(0, world.duplicate("expert"), world.duplicate("data"));
      const auto exchange = make_exchange("flat", test::setup_of(world, discover_topology(world), {64, 2, 64}));
      const auto kernels = make_reference_kernels();
      Arena arena;
      LaneContext ctx = {{*kernels, arena, DType::f64}, lane, *exchange};
      // The last of several ranks has nothing, the others what is theirs in turn.
      const int holders = std::max(1, world.size() - 1);
      std::vector<Candidate> mine;
      std::vector<uint8_t> wanted;
      for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].token % holders != world.rank()) continue;
        mine.push_back(all[i]);
        wanted.push_back(expected[i]);
      }
      std::vector<uint8_t> kept;
      const auto keep = [&]() -> Task<void> {
        Task<std::vector<uint8_t>> keeping = keep_best(ctx, mine, limits);
        kept = co_await keeping;
      };
      Task<void> task = keep();
      Engine().run(lane, task);
      EXPECT_EQ(kept, wanted);
    });
  }
}

TEST(KeepBest, keys_sort_as_numbers_do) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> rising = {-infinity, -2.5, -1e-300, 0.0, 1e-300, 0.1, 3.0, infinity};
  for (size_t i = 1; i < rising.size(); ++i) EXPECT_LT(sort_key(rising[i - 1]), sort_key(rising[i]));
  EXPECT_EQ(sort_key(-0.0), sort_key(0.0));
}

}  // namespace
}  // namespace cadre::keep_best_test
