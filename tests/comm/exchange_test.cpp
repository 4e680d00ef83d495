// SPDX-License-Identifier: Apache-2.0
// Every strategy delivers each row exactly once to each rank that needs it, and nothing else. A row is known by its
// payload, which says (source rank, token).
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "comm/base/random.hpp"
#include "comm/exchange/route.hpp"
#include "comm/job/wait.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::exchange_test {
namespace {

void each_exchange(const test::ExchangeNeeds& needs, const std::function<void(Communicator&, Exchange&)>& body) {
  test::each_exchange(needs, body, {1, 2, 3, 4, 5, 6, 7, 8});
}

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

int32_t partly_masked(int rank, int64_t token, int k, int num_experts) {
  return (token + k) % 3 == 0 ? -1 : spread(rank, token, k, num_experts);
}

int32_t to_last_rank(int /*rank*/, int64_t /*token*/, int k, int num_experts) { return num_experts - 1 - k; }

const Case kCases[] = {
    {"balanced", 8, 2, [](int) { return int64_t{40}; }, spread},
    {"ten experts", 10, 3, [](int) { return int64_t{17}; }, spread},
    {"sixty-four experts, top-8", 64, 8, [](int) { return int64_t{23}; }, spread},
    {"every expert", 5, 5, [](int) { return int64_t{11}; }, spread},
    {"one expert", 1, 1, [](int) { return int64_t{6}; }, spread},
    {"fewer experts than ranks", 2, 1, [](int) { return int64_t{9}; }, spread},
    {"ragged, rank 0 empty", 8, 4, [](int rank) { return int64_t{rank * 7}; }, spread},
    {"all to one expert", 8, 1, [](int) { return int64_t{12}; }, [](int, int64_t, int, int) { return 5; }},
    {"all to the last rank", 16, 2, [](int) { return int64_t{31}; }, to_last_rank},
    {"masked slots", 12, 4, [](int rank) { return int64_t{20 + rank}; }, partly_masked},
    {"all masked", 4, 2, [](int) { return int64_t{6}; }, [](int, int64_t, int, int) { return -1; }},
    {"no token anywhere", 4, 2, [](int) { return int64_t{0}; }, spread},
};
constexpr int kMaxTokens = 100;
constexpr int kMaxTopK = 8;

constexpr int kWords = 20;  // of a row: more than the strategies call small
constexpr size_t kRowBytes = kWords * sizeof(int64_t);
const RowFormat kFormat = {DType::i64, kWords, Wire::same};

// Word w of the row that (rank, token) carries in a round trip: unique, so that no row of a trip before can pass for it.
int64_t payload(int trip, int rank, int64_t token, int word) {
  return ((int64_t{trip} * 100 + rank) * 1000 + token) * 100 + word;
}

std::unique_ptr<Route> make_route(const Case& test_case, const Communicator& world, Exchange& exchange) {
  std::vector<int32_t> ids;
  for (int64_t token = 0; token < test_case.num_tokens(world.rank()); ++token) {
    for (int k = 0; k < test_case.top_k; ++k) {
      ids.push_back(test_case.expert(world.rank(), token, k, test_case.num_experts));
    }
  }
  auto route = exchange.route(
      make_dispatch_plan(ids, test_case.top_k, ExpertMap::contiguous(test_case.num_experts, world.size())));
  Request& counts = route->announce();
  wait(counts);
  route->learn_counts();
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

// Where a test keeps the rows it sends: in memory of its own, or in the exchange's, where peers can read them.
enum class Keep { own, exchange };

class RowMemory {
 public:
  RowMemory(Keep keep, Exchange& exchange) : keep_(keep), memory_(exchange.memory()) {}

  int64_t* rows(int64_t count) {
    const auto bytes = static_cast<size_t>(count) * kRowBytes;
    if (keep_ == Keep::exchange && used_ + bytes <= memory_.size()) {
      auto* rows = reinterpret_cast<int64_t*>(memory_.data() + used_);
      used_ += whole_cache_lines(bytes);
      return rows;
    }
    own_.emplace_back(bytes);
    return own_.back().as<int64_t>();
  }

 private:
  Keep keep_;
  std::span<std::byte> memory_;
  size_t used_ = 0;
  std::vector<Buffer> own_;
};

Elements run(RowTransfer& transfer, const Elements& rows) {
  transfer.pack(rows);
  transfer.start();
  wait(transfer.finish());
  return transfer.unpack();
}

int64_t word_at(const Elements& elements, int64_t i, int word) {
  int64_t value = 0;
  std::memcpy(&value, elements.at(i) + static_cast<size_t>(word) * sizeof value, sizeof value);
  return value;
}

Elements elements_of(const int64_t* rows, std::span<const int32_t> index = {}) {
  return {reinterpret_cast<const std::byte*>(rows), kRowBytes, index};
}

// There and back: every row arrives once, in order; every answer (the payload plus one, so that an echo of old memory
// would show) comes home to its token.
void expect_round_trip(const Case& test_case, const Communicator& world, Exchange& exchange, Keep keep, int trip) {
  const auto route = make_route(test_case, world, exchange);
  RowMemory memory(keep, exchange);
  int64_t* tokens = memory.rows(route->plan().num_tokens);
  for (int64_t token = 0; token < route->plan().num_tokens; ++token) {
    for (int word = 0; word < kWords; ++word) tokens[token * kWords + word] = payload(trip, world.rank(), token, word);
  }
  auto there = route->transfer(Direction::to_experts, Unit::row, kFormat);
  const Elements received = run(*there, elements_of(tokens, route->plan().row_token));

  const auto expected = expected_rows(test_case, world);
  const auto num_received = static_cast<int64_t>(expected.size());
  ASSERT_EQ(route->receive().num_rows(), num_received);
  int64_t* answers = memory.rows(num_received);
  for (int64_t row = 0; row < num_received; ++row) {
    const auto [source, token] = expected[static_cast<size_t>(row)];
    for (int word = 0; word < kWords; ++word) {
      ASSERT_EQ(word_at(received, row, word), payload(trip, source, token, word)) << "row " << row;
      answers[row * kWords + word] = word_at(received, row, word) + 1;
    }
  }
  there.reset();

  const auto back = route->transfer(Direction::to_tokens, Unit::row, kFormat);
  const Elements home = run(*back, elements_of(answers));
  ASSERT_EQ(home.offsets.size(), static_cast<size_t>(route->plan().num_tokens) + 1);
  for (int64_t token = 0; token < route->plan().num_tokens; ++token) {
    // A strategy may add up what comes from one host.
    const TokenOrder rows = token_order(route->plan(), Unit::row);
    const int64_t num_answers = rows.offsets[token + 1] - rows.offsets[token];
    for (int word = 0; word < kWords; ++word) {
      int64_t sum = 0;
      for (int32_t i = home.offsets[token]; i < home.offsets[token + 1]; ++i) sum += word_at(home, i, word);
      ASSERT_EQ(sum, num_answers * (payload(trip, world.rank(), token, word) + 1)) << "token " << token;
    }
  }
  wait(back->release());
}

TEST(Exchange, delivers_each_row_once_and_brings_it_back) {
  each_exchange({.max_tokens = kMaxTokens, .top_k = kMaxTopK, .row_bytes = kRowBytes},
                [](Communicator& world, Exchange& exchange) {
                  int trip = 0;
                  for (const Case& test_case : kCases) {
                    for (const Keep keep : {Keep::exchange, Keep::own}) {
                      SCOPED_TRACE(testing::Message() << test_case.name << (keep == Keep::own ? ", own memory" : ""));
                      expect_round_trip(test_case, world, exchange, keep, ++trip);
                    }
                  }
                });
}

// Answers per slot: each tells (token, k), and they come home in that order.
TEST(Exchange, brings_slots_home_in_top_k_order) {
  each_exchange({.max_tokens = kMaxTokens, .top_k = kMaxTopK, .row_bytes = kRowBytes}, [](Communicator& world,
                                                                                          Exchange& exchange) {
    for (const Case& test_case : kCases) {
      SCOPED_TRACE(test_case.name);
      const auto route = make_route(test_case, world, exchange);
      std::vector<int64_t> names;  // of this rank's slots, in the plan's order
      for (const int32_t slot : route->plan().slots) names.push_back(world.rank() * 100000 + slot);
      auto there = route->transfer(Direction::to_experts, Unit::slot, RowFormat::of_bytes(sizeof(int64_t)));
      const Elements received = run(*there, {reinterpret_cast<const std::byte*>(names.data()), sizeof(int64_t)});

      // Sent in reverse, through an index, so that order is the transfer's work and not the caller's.
      const int64_t num_slots = route->receive().num_slots();
      RowMemory memory(Keep::exchange, exchange);
      int64_t* rows = memory.rows(num_slots);
      std::vector<int32_t> index;
      for (int64_t slot = 0; slot < num_slots; ++slot) {
        const int64_t place = num_slots - 1 - slot;
        index.push_back(static_cast<int32_t>(place));
        for (int word = 0; word < kWords; ++word) rows[place * kWords + word] = word_at(received, slot, 0);
      }
      const auto back = route->transfer(Direction::to_tokens, Unit::slot, kFormat);
      const Elements home = run(*back, elements_of(rows, index));
      int64_t next = 0;
      for (int64_t token = 0; token < route->plan().num_tokens; ++token) {
        for (int k = 0; k < test_case.top_k; ++k) {
          if (test_case.expert(world.rank(), token, k, test_case.num_experts) < 0) continue;
          ASSERT_EQ(word_at(home, next, 3), world.rank() * 100000 + token * test_case.top_k + k);
          ++next;
        }
        ASSERT_EQ(home.offsets[token + 1], next);
      }
      wait(back->release());
    }
  });
}

// Rows of zeros to the experts: what comes home goes the way that rows have come.
void dispatch_zeros(const std::unique_ptr<Route>& route, const RowFormat& format) {
  Buffer rows(static_cast<size_t>(route->plan().num_tokens) * format.row_bytes());
  if (!rows.empty()) std::memset(rows.data(), 0, rows.bytes());
  const auto there = route->transfer(Direction::to_experts, Unit::row, format);
  run(*there, {rows.data(), format.row_bytes(), route->plan().row_token});
}

// Where rows are read in place, the rank that offers them must keep them until the slowest peer of its host has read them.
TEST(Exchange, release_is_complete_only_when_all_peers_have_read) {
  const test::ExchangeNeeds needs = {.max_tokens = kMaxTokens, .top_k = kMaxTopK, .row_bytes = kRowBytes};
  const auto body = [&](Communicator& world) {
    const int slowest = world.size() - 1;
    for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
      const auto exchange = make_exchange(variant.strategy, test::setup_of(world, variant.topology, needs));
      const bool in_place = variant.strategy == "shared" || variant.strategy == "hierarchical";
      const std::vector<int>& hosts = variant.topology.host_of_rank;
      const bool must_wait = in_place && world.rank() != slowest && hosts[world.rank()] == hosts[slowest];
      const auto route = make_route(kCases[0], world, *exchange);
      dispatch_zeros(route, kFormat);
      for (const Unit unit : {Unit::row, Unit::slot, Unit::row, Unit::slot}) {
        SCOPED_TRACE(variant.describe() + (unit == Unit::row ? ", rows" : ", slots"));
        RowMemory memory(Keep::exchange, *exchange);
        const int64_t* rows = memory.rows(route->sides(Direction::to_tokens, unit).out.total());
        const auto back = route->transfer(Direction::to_tokens, unit, kFormat);
        run(*back, elements_of(rows));
        Request others_tried;
        if (world.rank() == slowest) {
          others_tried = world.barrier();
          wait(others_tried);
          wait(back->release());
          continue;
        }
        Request& all_read = back->release();
        for (int i = 0; i < 20; ++i) EXPECT_FALSE(must_wait && all_read.test());
        others_tried = world.barrier();
        wait(others_tried);
        wait(all_read);
      }
    }
  };
  test::on_ranks(body, {2, 3, 4, 6});
}

// What several ranks of a host have for a token is added in the order of ranks, whatever the order of arrival: the order
// of these three shows, because 1 is lost beside 1e8.
TEST(Exchange, hierarchical_adds_the_sums_of_a_host_in_the_order_of_ranks) {
  constexpr int64_t kWidth = 32;
  const RowFormat format = {DType::f32, kWidth, Wire::same};
  const auto body = [&](Communicator& world) {
    const Topology topology = Topology::from_leaders({0, 1, 1, 1}, std::vector<std::string>(4, "host"));
    const auto exchange =
        make_exchange("hierarchical", test::setup_of(world, topology, {.max_tokens = 4, .top_k = 4, .row_bytes = 128}));
    const Case everywhere = {"every expert", 4, 4, [](int) { return int64_t{1}; },
                             [](int, int64_t, int k, int) { return k; }};
    const auto route = make_route(everywhere, world, *exchange);
    dispatch_zeros(route, format);
    const float value[] = {0.0F, 1e8F, -1e8F, 1.0F};  // of each rank: (1e8 - 1e8) + 1 = 1, and 0 from the other end
    const std::vector<float> rows(static_cast<size_t>(4 * kWidth), value[world.rank()]);
    const auto back = route->transfer(Direction::to_tokens, Unit::row, format);
    const Elements home = run(*back, {reinterpret_cast<const std::byte*>(rows.data()), kWidth * sizeof(float)});
    if (world.rank() == 0) {
      ASSERT_EQ(home.offsets[1], 2);  // its own and the other host's
      const auto* sum = reinterpret_cast<const float*>(home.at(1));
      for (int64_t i = 0; i < kWidth; ++i) EXPECT_EQ(sum[i], 1.0F);
    }
    wait(back->release());
  };
  if (test::num_hosts() == 1) test::on_ranks(body, {4});
}

// Both read rows where they lie, which no host does on a device.
TEST(Exchange, shared_memory_is_refused_for_rows_of_a_device) {
  test::on_one_rank([](Communicator world) {
    for (const char* strategy : {"shared", "hierarchical"}) {
      ExchangeSetup setup =
          test::setup_of(world, Topology::uniform(1, 1), {.max_tokens = 4, .top_k = 4, .row_bytes = 128});
      setup.device_codec = &host_codec();
      EXPECT_THROW(make_exchange(strategy, setup), Error);
    }
  });
}

// Dispatch after dispatch, with nothing in between that would hold the fast ranks back: they are one ahead of those that
// read late, which still find the rows, and the notices that say where they are, of the dispatch before.
TEST(Exchange, ranks_may_run_one_dispatch_ahead_of_those_that_read_late) {
  const test::ExchangeNeeds needs = {.max_tokens = kMaxTokens, .top_k = kMaxTopK, .row_bytes = kRowBytes};
  const auto body = [&](Communicator& world) {
    for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
      SCOPED_TRACE(variant.describe());
      const auto exchange = make_exchange(variant.strategy, test::setup_of(world, variant.topology, needs));
      const Case* const cases[] = {&kCases[0], &kCases[1], &kCases[6], &kCases[9], &kCases[8], &kCases[0]};
      std::vector<std::unique_ptr<Route>> routes;
      for (const Case* test_case : cases) routes.push_back(make_route(*test_case, world, *exchange));
      RowMemory memory(Keep::exchange, *exchange);
      for (size_t i = 0; i < routes.size(); ++i) {
        const std::unique_ptr<Route>& route = routes[i];
        const int trip = static_cast<int>(i);
        int64_t* tokens = memory.rows(route->plan().num_tokens);
        for (int64_t at = 0; at < route->plan().num_tokens * kWords; ++at) {
          tokens[at] = payload(trip, world.rank(), at / kWords, static_cast<int>(at % kWords));
        }
        const auto there = route->transfer(Direction::to_experts, Unit::row, kFormat);
        there->pack(elements_of(tokens, route->plan().row_token));
        there->start();
        wait(there->finish());
        if (world.rank() % 2 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        const Elements received = there->unpack();
        const auto expected = expected_rows(*cases[i], world);
        for (size_t row = 0; row < expected.size(); ++row) {
          const auto [source, token] = expected[row];
          for (const int word : {0, kWords - 1}) {
            EXPECT_EQ(word_at(received, static_cast<int64_t>(row), word), payload(trip, source, token, word))
                << "dispatch " << trip << ", row " << row;
          }
        }
      }
      Request all_done = world.barrier();
      wait(all_done);
    }
  };
  test::on_ranks(body, {2, 3, 4, 6});
}

// Conservation: what all send is what all receive, and with what was masked it is tokens x top-k.
TEST(Exchange, conserves_rows_and_slots) {
  each_exchange({.max_tokens = kMaxTokens, .top_k = kMaxTopK, .row_bytes = kRowBytes}, [](Communicator& world,
                                                                                          Exchange& exchange) {
    for (const Case& test_case : kCases) {
      SCOPED_TRACE(test_case.name);
      const auto route = make_route(test_case, world, exchange);
      const std::vector<int64_t> mine = {route->plan().num_rows(),  route->receive().num_rows(),
                                         route->plan().num_slots(), route->receive().num_slots(),
                                         route->plan().num_dropped, route->plan().num_tokens * route->plan().top_k};
      const std::vector<int64_t> sums = wait(world.all_reduce(mine, ReduceOp::sum));
      EXPECT_EQ(sums[0], sums[1]);
      EXPECT_EQ(sums[2], sums[3]);
      EXPECT_EQ(sums[2] + sums[4], sums[5]);
    }
  });
}

}  // namespace
}  // namespace cadre::exchange_test
