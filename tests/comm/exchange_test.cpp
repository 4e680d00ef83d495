// SPDX-License-Identifier: Apache-2.0
// Every strategy delivers each row exactly once to each rank that needs it, and nothing else.
#include "comm/exchange/exchange.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "comm/base/random.hpp"
#include "comm/transport/wait.hpp"
#include "tests/support/ranks.hpp"

namespace cadre {
namespace {

using test::on_ranks;

struct Case {
  const char* name;
  int num_experts;
  int top_k;
  int64_t (*num_tokens)(int rank);
  int32_t (*expert)(int rank, int64_t token, int k, int num_experts);
};

int32_t spread(int rank, int64_t token, int k, int num_experts) {
  const Random random(3, "route", static_cast<uint64_t>(rank * 1000 + token));
  return static_cast<int32_t>((random.below(static_cast<uint64_t>(num_experts), 0) + static_cast<uint64_t>(k)) %
                              static_cast<uint64_t>(num_experts));
}

const Case kCases[] = {
    {"balanced", 8, 2, [](int) { return int64_t{40}; }, spread},
    {"ten experts", 10, 3, [](int) { return int64_t{17}; }, spread},
    {"fewer experts than ranks", 2, 1, [](int) { return int64_t{9}; }, spread},
    {"ragged, rank 0 empty", 8, 4, [](int rank) { return int64_t{rank * 7}; }, spread},
    {"all to one expert", 8, 1, [](int) { return int64_t{12}; }, [](int, int64_t, int, int) { return 5; }},
    {"all masked", 4, 2, [](int) { return int64_t{6}; }, [](int, int64_t, int, int) { return -1; }},
    {"no token anywhere", 4, 2, [](int) { return int64_t{0}; }, spread},
};

constexpr int kRowWords = 5;

// Word w of the row that (rank, token) carries: unique.
int64_t payload(int rank, int64_t token, int word) { return (rank * 1000 + token) * 10 + word; }

Route make_route(const Case& test_case, const Communicator& world, Exchange& exchange) {
  std::vector<int32_t> ids;
  for (int64_t token = 0; token < test_case.num_tokens(world.rank()); ++token) {
    for (int k = 0; k < test_case.top_k; ++k) {
      ids.push_back(test_case.expert(world.rank(), token, k, test_case.num_experts));
    }
  }
  Route route;
  route.plan = make_dispatch_plan(ids, test_case.top_k, ExpertMap::contiguous(test_case.num_experts, world.size()));
  Request counts = exchange.announce(route);
  wait(counts);
  exchange.learn_counts(route);
  return route;
}

// What each rank must get, from every rank's routing.
std::vector<std::pair<int, int64_t>> expected_rows(const Case& test_case, const Communicator& world) {
  const ExpertMap map = ExpertMap::contiguous(test_case.num_experts, world.size());
  std::vector<std::pair<int, int64_t>> rows;
  for (int source = 0; source < world.size(); ++source) {
    for (int64_t token = 0; token < test_case.num_tokens(source); ++token) {
      bool needed = false;
      for (int k = 0; k < test_case.top_k; ++k) {
        const int32_t expert = test_case.expert(source, token, k, test_case.num_experts);
        needed |= expert >= 0 && map.owner(expert) == world.rank();
      }
      if (needed) rows.emplace_back(source, token);
    }
  }
  return rows;
}

std::span<const std::byte> run(RowTransfer& transfer, const std::vector<int64_t>& rows,
                               std::span<const int32_t> index) {
  transfer.pack(reinterpret_cast<const std::byte*>(rows.data()), index);
  transfer.start();
  wait(transfer.finish());
  return transfer.unpack();
}

TEST(FlatExchange, delivers_each_row_once_and_brings_it_back) {
  on_ranks([](Communicator& world) {
    const auto exchange = make_flat_exchange(world);
    for (const Case& test_case : kCases) {
      SCOPED_TRACE(test_case.name);
      const Route route = make_route(test_case, world, *exchange);
      std::vector<int64_t> tokens;
      for (int64_t token = 0; token < route.plan.num_tokens; ++token) {
        for (int word = 0; word < kRowWords; ++word) tokens.push_back(payload(world.rank(), token, word));
      }
      const auto there = exchange->transfer(route, Direction::to_experts, Unit::row, kRowWords * sizeof(int64_t));
      const auto bytes = run(*there, tokens, route.plan.row_token);

      const auto expected = expected_rows(test_case, world);
      ASSERT_EQ(bytes.size(), expected.size() * kRowWords * sizeof(int64_t));
      std::vector<int64_t> received(expected.size() * kRowWords);
      if (!bytes.empty()) std::memcpy(received.data(), bytes.data(), bytes.size());
      for (size_t row = 0; row < expected.size(); ++row) {
        for (int word = 0; word < kRowWords; ++word) {
          ASSERT_EQ(received[row * kRowWords + word], payload(expected[row].first, expected[row].second, word));
        }
      }

      // Back, one answer a row: the payload plus one, so that an echo of old memory would show.
      for (int64_t& word : received) ++word;
      const auto back = exchange->transfer(route, Direction::to_tokens, Unit::row, kRowWords * sizeof(int64_t));
      const auto answers = run(*back, received, {});
      ASSERT_EQ(answers.size(), static_cast<size_t>(route.plan.num_rows()) * kRowWords * sizeof(int64_t));
      for (int64_t row = 0; row < route.plan.num_rows(); ++row) {
        int64_t first = 0;
        std::memcpy(&first, answers.data() + static_cast<size_t>(row) * kRowWords * sizeof(int64_t), sizeof first);
        EXPECT_EQ(first, payload(world.rank(), route.plan.row_token[static_cast<size_t>(row)], 0) + 1);
      }
    }
  });
}

TEST(FlatExchange, slots_travel_like_rows) {
  on_ranks([](Communicator& world) {
    const auto exchange = make_flat_exchange(world);
    const Case& test_case = kCases[1];
    const Route route = make_route(test_case, world, *exchange);
    ASSERT_GT(route.plan.num_slots(), route.plan.num_rows()) << "no row carries two slots";
    std::vector<int64_t> slot_words;
    for (const int32_t slot : route.plan.slots) slot_words.push_back(world.rank() * 100000 + slot);
    const auto there = exchange->transfer(route, Direction::to_experts, Unit::slot, sizeof(int64_t));
    const auto bytes = run(*there, slot_words, {});
    ASSERT_EQ(bytes.size(), static_cast<size_t>(route.receive.num_slots()) * sizeof(int64_t));
    std::vector<int64_t> received(bytes.size() / sizeof(int64_t));
    std::memcpy(received.data(), bytes.data(), bytes.size());
    const auto back = exchange->transfer(route, Direction::to_tokens, Unit::slot, sizeof(int64_t));
    const auto echoed = run(*back, received, {});
    EXPECT_TRUE(std::equal(echoed.begin(), echoed.end(), reinterpret_cast<const std::byte*>(slot_words.data())));
  });
}

// Conservation: what all send is what all receive, and with what was masked it is tokens x top-k.
TEST(FlatExchange, conserves_rows_and_slots) {
  on_ranks([](Communicator& world) {
    const auto exchange = make_flat_exchange(world);
    for (const Case& test_case : kCases) {
      SCOPED_TRACE(test_case.name);
      const Route route = make_route(test_case, world, *exchange);
      std::vector<int64_t> sums = {route.plan.num_rows(),  route.receive.num_rows(),
                                   route.plan.num_slots(), route.receive.num_slots(),
                                   route.plan.num_dropped, route.plan.num_tokens * route.plan.top_k};
      Request summed = world.all_reduce(std::span(sums), ReduceOp::sum);
      wait(summed);
      EXPECT_EQ(sums[0], sums[1]);
      EXPECT_EQ(sums[2], sums[3]);
      EXPECT_EQ(sums[2] + sums[4], sums[5]);
    }
  });
}

}  // namespace
}  // namespace cadre
