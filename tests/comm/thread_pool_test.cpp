// SPDX-License-Identifier: Apache-2.0
// Work that is shared out to the threads of a rank.
#include "comm/job/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre::thread_pool_test {
namespace {

class Pool : public testing::TestWithParam<int> {
 protected:
  Pool() { pool.resize(GetParam()); }
  ThreadPool pool;
};

TEST_P(Pool, ComputesEachPartOnce) {
  for (int64_t parts = 0; parts < 200; ++parts) {
    std::vector<int> times(static_cast<size_t>(parts));
    pool.run(parts, [&](int64_t i) { ++times[static_cast<size_t>(i)]; });
    ASSERT_EQ(times, std::vector<int>(static_cast<size_t>(parts), 1)) << parts << " parts";
  }
}

// A run may begin while a thread still looks for work of the one before.
TEST_P(Pool, RunsFollowEachOtherClosely) {
  std::vector<int64_t> sums(8);
  for (int64_t run = 0; run < 20'000; ++run) {
    pool.run(std::ssize(sums), [&](int64_t i) { sums[static_cast<size_t>(i)] += run; });
  }
  EXPECT_EQ(sums, std::vector<int64_t>(8, 20'000 * 19'999 / 2));
}

TEST_P(Pool, AThreadThatSleptIsWoken) {
  std::atomic<int> count = 0;
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.run(16, [&](int64_t) { ++count; });
  }
  EXPECT_EQ(count, 80);
}

TEST_P(Pool, AnErrorReachesTheCallerAndThePoolStaysUsable) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> computed = 0;
    try {
      pool.run(64, [&](int64_t i) {
        ++computed;
        if (i == 7) throw std::runtime_error("part 7");
      });
      FAIL() << "no error";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "part 7");
    }
    EXPECT_LE(computed, 64);
    std::atomic<int64_t> sum = 0;
    pool.run(10, [&](int64_t i) { sum += i; });
    EXPECT_EQ(sum, 45);
  }
}

TEST_P(Pool, APartMayHavePartsOfItsOwn) {
  std::vector<int64_t> sums(12);
  std::vector<std::set<std::thread::id>> threads(12);
  pool.run(12, [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    threads[at].insert(std::this_thread::get_id());
    pool.run(100, [&](int64_t j) {
      sums[at] += j;
      threads[at].insert(std::this_thread::get_id());
    });
  });
  EXPECT_EQ(sums, std::vector<int64_t>(12, 4950));
  for (const auto& of_part : threads) EXPECT_EQ(of_part.size(), 1U);
}

TEST_P(Pool, ChangesItsSize) {
  for (const int size : {3, 1, 4, 2, 2, 1}) {
    pool.resize(size);
    EXPECT_EQ(pool.size(), size);
    std::atomic<int64_t> sum = 0;
    pool.run(1000, [&](int64_t i) { sum += i; });
    EXPECT_EQ(sum, 499'500);
  }
  EXPECT_THROW(pool.resize(0), Error);
}

INSTANTIATE_TEST_SUITE_P(Threads, Pool, testing::Values(1, 2, 4));

// Complete once it has been tested so often.
class Countdown : public PendingOperation {
 public:
  explicit Countdown(int& left) : left_(left) {}
  bool test() override { return --left_ <= 0; }
  std::string missing() const override { return "no rank"; }

 private:
  int& left_;
};

// Those that wait for each other need that many threads.
TEST(ThreadPool, ItsThreadsComputeAtTheSameTime) {
  ThreadPool pool;
  pool.resize(3);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> arrived = 0;
    pool.run(3, [&](int64_t) {
      ++arrived;
      while (arrived < 3) std::this_thread::yield();
    });
    EXPECT_EQ(arrived, 3);
  }
}

TEST(ThreadPool, ItsOwnThreadPollsBetweenParts) {
  for (const int size : {1, 2}) {
    int left = 3;
    Request request("countdown", std::make_unique<Countdown>(left));
    Poller poller({.polls_per_exchange = 10});
    ThreadPool pool(&poller);
    pool.resize(size);
    poller.watch(request);
    for (int i = 0; i < 1000 && !request.done(); ++i) {
      pool.run(2, [&](int64_t) { std::this_thread::sleep_for(std::chrono::microseconds(50)); });
    }
    EXPECT_TRUE(request.done());
  }
}

}  // namespace
}  // namespace cadre::thread_pool_test
