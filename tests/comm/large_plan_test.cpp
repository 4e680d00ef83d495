// SPDX-License-Identifier: Apache-2.0
// Counts are rows: more than 2^31 bytes go one way in one exchange, as few wide rows. And counts that do not fit an int
// are refused before anything is allocated for them.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "comm/exchange/route.hpp"
#include "comm/job/wait.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::large_plan_test {
namespace {

constexpr int64_t kRows = 133;
constexpr int64_t kWords = (int64_t{1} << 21) + 5;  // of a row: 16 MiB and no whole page
const RowFormat kFormat = {DType::i64, kWords, Wire::same};
constexpr size_t kRowBytes = kWords * sizeof(int64_t);
constexpr size_t kBytes = kRows * kRowBytes;
static_assert(kBytes > size_t{1} << 31);

// What all ranks hold together at most: two copies of the rows, and the pages of the originals that were written.
constexpr size_t kNeededBytes = 2 * kBytes + (size_t{1} << 29);

size_t available_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    size_t kib = 0;
    if (key == "MemAvailable:" && meminfo >> kib) return kib << 10;
  }
  return 0;
}

size_t available_shared_bytes() {
  struct statvfs space {};
  return statvfs("/dev/shm", &space) == 0 ? static_cast<size_t>(space.f_bavail) * space.f_frsize : 0;
}

// All ranks alike; rank 0 says what is missing.
bool is_available(const Communicator& world, size_t shared_bytes) {
  const std::vector<int64_t> mine = {static_cast<int64_t>(available_bytes()),
                                     static_cast<int64_t>(available_shared_bytes())};
  const std::vector<int64_t> bytes = wait(world.all_reduce(mine, ReduceOp::min));
  const bool enough = static_cast<size_t>(bytes[0]) > kNeededBytes + (size_t{1} << 30) &&
                      (!test::runs_under_mpi() || static_cast<size_t>(bytes[1]) > shared_bytes);
  if (!enough && world.rank() == 0) {
    printf("skipped: needs %zu MiB of memory and %zu MiB of /dev/shm; there are %ld and %ld\n", kNeededBytes >> 20,
           shared_bytes >> 20, static_cast<long>(bytes[0] >> 20), static_cast<long>(bytes[1] >> 20));
  }
  return enough;
}

// The first, last and a middle word of the row that (rank, token) carries; the rest is left alone, so that the original
// costs a few pages and not a copy.
constexpr int64_t kNamedWords[] = {0, kWords / 3, kWords - 1};

int64_t name_of_word(int rank, int64_t token, int64_t word) {
  return (rank * 1000 + token) * (int64_t{1} << 32) + word + 1;
}

void name_rows(std::byte* rows, int rank, int64_t count) {
  for (int64_t row = 0; row < count; ++row) {
    auto* words = reinterpret_cast<int64_t*>(rows + static_cast<size_t>(row) * kRowBytes);
    for (const int64_t word : kNamedWords) words[word] = name_of_word(rank, row, word);
  }
}

void expect_rows(const Elements& elements, int rank, int64_t count) {
  for (int64_t row = 0; row < count; ++row) {
    const auto* words = reinterpret_cast<const int64_t*>(elements.at(row));
    for (const int64_t word : kNamedWords) ASSERT_EQ(words[word], name_of_word(rank, row, word)) << "row " << row;
  }
}

// Rank 0 has kRows tokens for rank 1, which has one for rank 0.
std::unique_ptr<Route> make_route(const Communicator& world, Exchange& exchange) {
  const std::vector<int32_t> ids(world.rank() == 0 ? kRows : 1, 1 - world.rank());
  auto route = exchange.route(make_dispatch_plan(ids, 1, ExpertMap::contiguous(2, 2)));
  Request& counts = route->announce();
  wait(counts);
  route->learn_counts();
  return route;
}

// There: rows of tokens. Home: as many rows, named by who sends them.
void expect_delivery(const Communicator& world, const std::unique_ptr<Route>& route, Direction direction, bool by_token,
                     std::byte* rows) {
  const Sides sides = route->sides(direction, Unit::row);
  name_rows(rows, world.rank(), sides.out.total());
  const auto transfer = route->transfer(direction, Unit::row, kFormat);
  transfer->pack(
      {rows, kRowBytes, by_token ? std::span<const int32_t>(route->plan().row_token) : std::span<const int32_t>()});
  transfer->start();
  wait(transfer->finish());
  expect_rows(transfer->unpack(), 1 - world.rank(), sides.in.total());
  wait(transfer->release());
}

ExchangeSetup setup_of(const Communicator& world, const Topology& topology, size_t memory_bytes) {
  return {.group = world,
          .topology = topology,
          .max_tokens = kRows,
          .top_k = 1,
          .max_row_bytes = kRowBytes,
          .memory_bytes = memory_bytes};
}

const std::vector<int> kTwoRanks = {2};

// Home over MPI only: threads would take the same way again, and seconds.
TEST(LargePlan, flat_there_and_home) {
  test::on_ranks(
      [](Communicator& world) {
        if (!is_available(world, 0)) return;
        Buffer rows(kBytes);
        for (const Direction direction : {Direction::to_experts, Direction::to_tokens}) {
          const auto exchange = make_exchange("flat", setup_of(world, Topology::uniform(1, 2), 0));
          const auto route = make_route(world, *exchange);
          expect_delivery(world, route, direction, /*by_token=*/false, rows.data());
          if (!test::runs_under_mpi()) return;
        }
      },
      kTwoRanks);
}

TEST(LargePlan, shared_reads_rows_in_place) {
  test::on_ranks(
      [](Communicator& world) {
        if (!is_available(world, 2 * kBytes + (size_t{1} << 20))) return;
        const auto exchange = make_exchange("shared", setup_of(world, Topology::uniform(1, 2), kBytes));
        const auto route = make_route(world, *exchange);
        for (const Direction direction : {Direction::to_experts, Direction::to_tokens}) {
          expect_delivery(world, route, direction, /*by_token=*/false, exchange->memory().data());
        }
      },
      kTwoRanks);
}

// Messages on the host, and between hosts. Threads would hold a third copy.
TEST(LargePlan, shared_and_hierarchical_by_message) {
  if (!test::runs_under_mpi()) GTEST_SKIP() << "over MPI only";
  test::on_ranks(
      [](Communicator& world) {
        if (!is_available(world, 4 * kBytes)) return;
        {
          Buffer rows(kBytes);
          const auto exchange = make_exchange("shared", setup_of(world, Topology::uniform(1, 2), 0));
          const auto route = make_route(world, *exchange);
          expect_delivery(world, route, Direction::to_experts, /*by_token=*/false, rows.data());
        }
        Buffer rows(kBytes);
        const auto exchange = make_exchange("hierarchical", setup_of(world, Topology::uniform(2, 1), 0));
        const auto route = make_route(world, *exchange);
        expect_delivery(world, route, Direction::to_experts, /*by_token=*/true, rows.data());
      },
      kTwoRanks);
}

constexpr int64_t kTooMany = int64_t{1} << 31;

// A peer that announces more than an int holds, alone or together with the others.
TEST(LargePlan, refuses_counts_beyond_an_int) {
  test::on_ranks([](Communicator& world) {
    for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
      SCOPED_TRACE(variant.describe());
      const auto exchange = make_exchange(
          variant.strategy, test::setup_of(world, variant.topology, {.max_tokens = 4, .top_k = 1, .row_bytes = 256}));
      const auto announced = [&](int64_t num_rows, int64_t num_slots, int64_t num_tokens) {
        DispatchPlan plan = make_dispatch_plan({}, 1, ExpertMap::contiguous(4, world.size()));
        const auto num_ranks = static_cast<size_t>(world.size());
        plan.row_counts.assign(num_ranks, num_rows);
        plan.slot_counts.assign(num_ranks, num_slots);
        if (variant.strategy == "all_gather") plan.num_tokens = num_tokens;
        const auto route = exchange->route(std::move(plan));
        Request& counts = route->announce();
        wait(counts);
        return test::message_of([&] { route->learn_counts(); });
      };
      const int64_t share = kTooMany / world.size() + 1;
      test::expect_message(announced(share, 0, 0), {"rows to receive", "does not fit the int"});
      test::expect_message(announced(1, share, 0), {"slots to receive", "does not fit the int"});
      EXPECT_EQ(announced((kTooMany - 1) / world.size(), (kTooMany - 1) / world.size(), 0), "no error");
      if (variant.strategy == "all_gather")
        test::expect_message(announced(1, 1, share), {"rows to gather", "does not fit the int"});
    }
  });
}

// 2^31 expert ids of which nobody reads one: the plan is refused by its size.
TEST(LargePlan, refuses_to_plan_more_slots_than_an_int_holds) {
  const size_t bytes = static_cast<size_t>(kTooMany) * sizeof(int32_t);
  void* ids = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (ids == MAP_FAILED) GTEST_SKIP() << "no address space of 8 GiB";
  const ExpertMap map = ExpertMap::contiguous(4, 2);
  for (const int top_k : {1, 8}) {
    const std::string message = test::message_of([&] {
      static_cast<void>(
          make_dispatch_plan({static_cast<const int32_t*>(ids), static_cast<size_t>(kTooMany)}, top_k, map));
    });
    test::expect_message(message, {"tokens x top-k to dispatch = 2147483648", "does not fit the int"});
  }
  munmap(ids, bytes);
}

}  // namespace
}  // namespace cadre::large_plan_test
