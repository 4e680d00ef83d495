// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/transport.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/exchange/plan.hpp"
#include "comm/group/agreement.hpp"
#include "comm/group/topology.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/local.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::transport_test {
namespace {

using test::on_ranks;

TEST(Transport, messages_arrive_in_order_and_by_tag) {
  on_ranks([](Communicator& world) {
    const int next = (world.rank() + 1) % world.size();
    const int previous = (world.rank() + world.size() - 1) % world.size();
    const std::vector<int32_t> sent = {world.rank() * 10, world.rank() * 10 + 1, world.rank() * 10 + 2};
    std::vector<int32_t> got(3, -1);
    const auto bytes = [](auto& values, size_t i) {
      return std::as_writable_bytes(std::span(values)).subspan(i * 4, 4);
    };
    Request first = world.transport().receive(bytes(got, 0), previous, 5);
    Request other_tag = world.transport().receive(bytes(got, 2), previous, 6);
    Request second = world.transport().receive(bytes(got, 1), previous, 5);
    std::vector<Request> sends;
    for (const size_t i : {2, 0, 1}) {
      sends.push_back(world.transport().send(std::as_bytes(std::span(sent)).subspan(i * 4, 4), next, i == 2 ? 6 : 5));
    }
    wait(second);  // matched in the order in which they were posted, in any order of waits
    wait(first);
    wait(other_tag);
    for (Request& send : sends) wait(send);
    EXPECT_EQ(got, (std::vector<int32_t>{previous * 10, previous * 10 + 1, previous * 10 + 2}));
  });
}

TEST(Transport, all_reduce_sums_and_takes_the_extremes) {
  on_ranks([](Communicator& world) {
    const int size = world.size();
    auto sum = world.all_reduce(std::vector<double>{world.rank() + 1.0, 0.5}, ReduceOp::sum);
    auto max = world.all_reduce(std::array<int64_t, 2>{world.rank(), -world.rank()}, ReduceOp::max);
    auto min = world.all_reduce(static_cast<float>(world.rank()), ReduceOp::min);
    EXPECT_EQ(wait(std::move(sum)), (std::vector<double>{size * (size + 1) / 2.0, size * 0.5}));
    EXPECT_EQ(wait(std::move(max)), (std::array<int64_t, 2>{size - 1, 0}));
    EXPECT_EQ(wait(std::move(min)), 0.0F);
  });
}

TEST(Transport, gather_broadcast_and_all_to_all) {
  on_ranks([](Communicator& world) {
    const auto size = static_cast<size_t>(world.size());
    const std::vector<int32_t> mine = {world.rank(), world.rank() * world.rank()};
    const std::vector<int32_t> all = wait(world.all_gather(mine));
    const std::vector<int32_t> word = {world.rank() == world.size() - 1 ? 42 : 0};
    EXPECT_EQ(wait(world.broadcast(word, world.size() - 1)), std::vector<int32_t>{42});

    std::vector<int32_t> to(size);
    for (size_t peer = 0; peer < size; ++peer) to[peer] = world.rank() * 100 + static_cast<int32_t>(peer);
    const std::vector<int32_t> from = wait(world.all_to_all(to));
    for (size_t peer = 0; peer < size; ++peer) {
      const auto rank = static_cast<int32_t>(peer);
      EXPECT_EQ(all[2 * peer + 1], rank * rank);
      EXPECT_EQ(from[peer], rank * 100 + world.rank());
    }
  });
}

// Rank r sends (r + p) % 3 rows to rank p, so that some pairs have none.
TEST(Transport, ragged_rows_reach_their_places) {
  on_ranks([](Communicator& world) {
    const int size = world.size();
    const auto rows_between = [](int from, int to) { return (from + to) % 3; };
    std::vector<int64_t> send_counts, receive_counts;
    for (int peer = 0; peer < size; ++peer) {
      send_counts.push_back(rows_between(world.rank(), peer));
      receive_counts.push_back(rows_between(peer, world.rank()));
    }
    const std::vector<int64_t> send_offsets = offsets_of(send_counts);
    const std::vector<int64_t> receive_offsets = offsets_of(receive_counts);
    std::vector<int32_t> sent, received(static_cast<size_t>(receive_offsets.back()), -1);
    for (int peer = 0; peer < size; ++peer) {
      for (int64_t row = 0; row < send_counts[static_cast<size_t>(peer)]; ++row) {
        sent.push_back(world.rank() * 1000 + peer * 10 + static_cast<int32_t>(row));
      }
    }
    Request request = world.transport().all_to_all_rows(
        {reinterpret_cast<const std::byte*>(sent.data()), send_counts, send_offsets},
        {reinterpret_cast<std::byte*>(received.data()), receive_counts, receive_offsets}, sizeof(int32_t));
    wait(request);
    size_t at = 0;
    for (int peer = 0; peer < size; ++peer) {
      for (int row = 0; row < rows_between(peer, world.rank()); ++row, ++at) {
        EXPECT_EQ(received[at], peer * 1000 + world.rank() * 10 + row);
      }
    }
    EXPECT_EQ(at, received.size());
  });
}

TEST(Communicator, split_orders_by_key_and_keeps_groups_apart) {
  on_ranks([](Communicator& world) {
    const Communicator reversed = world.split(0, -world.rank(), "reversed");
    EXPECT_EQ(reversed.rank(), world.size() - 1 - world.rank());
    const Communicator parity = world.split(world.rank() % 2, world.rank(), "parity");
    const Communicator copy = parity.duplicate("copy");
    Pending<int32_t> summed = parity.all_reduce(world.rank(), ReduceOp::sum);
    Pending<int32_t> counted = copy.all_reduce(1, ReduceOp::sum);
    const int32_t count = wait(std::move(counted));
    const int32_t sum = wait(std::move(summed));
    int expected = 0;
    for (int rank = world.rank() % 2; rank < world.size(); rank += 2) expected += rank;
    EXPECT_EQ(sum, expected);
    EXPECT_EQ(count, parity.size());
  });
}

TEST(Wait, names_rank_position_and_peer_when_the_deadline_passes) {
  on_ranks(
      [](Communicator& world) {
        std::vector<std::byte> never(16);
        const int peer = world.size() - 1 - world.rank();
        Request request = world.transport().receive(std::span(never), peer, 1);
        try {
          wait(request, 0.05, {.step = 12, .layer = 3, .phase = "dispatch"});
          FAIL() << "the wait ended";
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), ErrorKind::timeout);
          EXPECT_NE(error.text().find("step 12, layer 3, dispatch"), std::string::npos) << error.text();
          EXPECT_NE(error.text().find(fmt::format("(rank {} of {})", world.rank(), world.size())), std::string::npos);
          EXPECT_NE(error.text().find(fmt::format("rank {} (expected 16 bytes, received none)", peer)),
                    std::string::npos);
        }
        // Once both have given up, let each have its message, so that the group ends clean.
        Request barrier = world.barrier();
        wait(barrier);
        Request sent = world.transport().send(std::as_bytes(std::span(never)), peer, 1);
        wait(request);
        wait(sent);
      },
      {2});
}

TEST(Wait, a_message_of_another_length_is_a_fault_of_the_peer) {
  on_ranks(
      [](Communicator& world) {
        const int peer = world.size() - 1 - world.rank();
        std::vector<std::byte> sent(8);
        std::vector<std::byte> expected(16);
        Request arrival = world.transport().receive(std::span(expected), peer, 1);
        Request sending = world.transport().send(std::as_bytes(std::span(sent)), peer, 1);
        wait(sending);
        try {
          wait(arrival);
          FAIL() << "half a message was taken for a whole one";
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), ErrorKind::peer);
          EXPECT_NE(error.text().find(fmt::format("expected 16 bytes from rank {} and received 8", peer)),
                    std::string::npos)
              << error.text();
        }
      },
      {2});
}

TEST(LocalRanks, a_failing_rank_releases_the_others) {
  if (test::runs_under_mpi()) return;
  EXPECT_THROW(run_local_ranks(3,
                               [](std::unique_ptr<Transport> transport) {
                                 if (transport->rank() == 1) throw std::runtime_error("rank 1 is gone");
                                 Request barrier = transport->barrier();
                                 wait(barrier);
                               }),
               std::runtime_error);
}

// A rank that comes to no wait cannot be released: it is named and left behind.
TEST(LocalRanks, one_that_never_waits_is_named_and_left) {
  if (test::runs_under_mpi()) return;
  const auto released = std::make_shared<std::atomic<bool>>(false);
  const JobContext job(0.1);
  try {
    run_local_ranks(job, 3, [released](std::unique_ptr<Transport> transport) {
      if (transport->rank() == 1) released->wait(false);
      Request barrier = transport->barrier();
      wait(barrier, {}, {.step = 4, .layer = 2, .phase = "combine"});
    });
    ADD_FAILURE() << "the ranks ended";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::timeout);
    for (const char* part :
         {"step 4, layer 2, combine", "barrier", "rank 1 (expected 0 bytes", "still busy", ": rank 1"}) {
      EXPECT_NE(error.text().find(part), std::string::npos) << error.text();
    }
  }
  EXPECT_TRUE(job.left_calls_behind()->load());
  released->store(true);
  released->notify_all();
}

// A call that blocks for ever ends with the deadline too.
TEST(BlockingCall, gives_results_and_errors_and_has_a_deadline) {
  if (test::runs_under_mpi()) return;  // what is left behind would keep MPI from its end
  JobContext job(0.1);
  EXPECT_EQ(blocking_call<int>(job, "an answer", [](int& result) { result = 42; }), 42);
  EXPECT_THROW(blocking_call(job, "a failure", [] { throw std::runtime_error("no"); }), std::runtime_error);
  const auto released = std::make_shared<std::atomic<bool>>(false);
  EXPECT_FALSE(job.left_calls_behind()->load());
  try {
    blocking_call(job, "a call that blocks", [released] { released->wait(false); });
    ADD_FAILURE() << "the call ended";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::timeout);
    EXPECT_NE(error.text().find("in a call that blocks"), std::string::npos) << error.text();
  }
  EXPECT_TRUE(job.left_calls_behind()->load());
  released->store(true);
  released->notify_all();
}

// A rank whose part timed out waits for the others of the attempt for seconds, not for a second deadline.
TEST(AttemptTogether, ends_soon_after_a_part_that_timed_out) {
  if (test::runs_under_mpi()) return;
  run_local_ranks(2, [](std::unique_ptr<Transport> transport) {
    const Communicator world(std::move(transport), "world");
    if (world.rank() == 1) return std::this_thread::sleep_for(std::chrono::seconds(4));
    const auto start = std::chrono::steady_clock::now();
    try {
      attempt_together(world, 60.0, "trying", [] { throw Error(ErrorKind::timeout, "rank 1 is late"); });
      ADD_FAILURE() << "the attempt ended without rank 1";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::timeout);
      EXPECT_EQ(error.text(), "rank 1 is late");
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4));
  });
}

size_t resident_bytes() {
  std::ifstream pages("/proc/self/statm");
  size_t all = 0;
  size_t resident = 0;
  pages >> all >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// Exchanges ask for more than a step touches.
TEST(Transport, memory_that_threads_share_is_zero_and_takes_none_until_it_is_touched) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  constexpr size_t kBytes = size_t{64} << 20;
  const size_t before = resident_bytes();
  run_local_ranks(2, [&](std::unique_ptr<Transport> transport) {
    const std::unique_ptr<SharedMemory> memory = transport->share(kBytes);
    EXPECT_LT(resident_bytes(), before + kBytes / 2);
    const std::span<std::byte> own = memory->of(transport->rank());
    EXPECT_EQ(own.size(), kBytes);
    EXPECT_EQ(own.front(), std::byte{0});
    EXPECT_EQ(own.back(), std::byte{0});
  });
}

TEST(Topology, counts_local_ranks_by_host) {
  const Topology given = Topology::from_leaders({0, 1, 0, 1, 1}, {"a", "b", "a", "b", "b"});
  EXPECT_EQ(given.host_of_rank, (std::vector<int>{0, 1, 0, 1, 1}));
  EXPECT_EQ(given.local_rank, (std::vector<int>{0, 0, 1, 1, 2}));
  EXPECT_EQ(Topology::uniform(128, 8).ranks_on_host(127), 8);
  on_ranks([](Communicator& world) {
    const Topology found = discover_topology(world);
    const Topology expected = Topology::uniform(test::num_hosts(), world.size() / test::num_hosts());
    EXPECT_EQ(found.num_hosts(), test::num_hosts());
    EXPECT_EQ(found.host_of_rank, expected.host_of_rank);
    EXPECT_EQ(found.local_rank, expected.local_rank);
  });
}

TEST(Grid, equals_the_worked_example) {
  const Grid grid = Grid::make(8, 2, 2);
  EXPECT_EQ(grid.data, 4);
  const auto all = [&](int (Grid::*place)(int) const) {
    std::vector<int> places;
    for (int rank = 0; rank < 8; ++rank) places.push_back((grid.*place)(rank));
    return places;
  };
  EXPECT_EQ(all(&Grid::stage), (std::vector<int>{0, 0, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(all(&Grid::pipeline_group), (std::vector<int>{0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(all(&Grid::expert_group), (std::vector<int>{0, 0, 1, 1, 2, 2, 3, 3}));
  EXPECT_EQ(all(&Grid::expert_rank), (std::vector<int>{0, 1, 0, 1, 0, 1, 0, 1}));
}

TEST(Grid, fits_or_says_why_not) {
  EXPECT_EQ(Grid::make(6, 1, 0).expert, 6);
  EXPECT_EQ(Grid::make(6, 3, 0).expert, 2);
  EXPECT_THROW(Grid::make(6, 1, 4), Error);
  EXPECT_THROW(Grid::make(6, 4, 1), Error);
  EXPECT_THROW(Grid::make(6, 1, 7), Error);
}

}  // namespace
}  // namespace cadre::transport_test
