// SPDX-License-Identifier: Apache-2.0
// Polling inside computation, and the work that fills waits.
#include "comm/job/poll.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "comm/progress/deferred.hpp"

namespace cadre::poll_test {
namespace {

// Complete once it has been tested so often, or told so.
class Countdown : public PendingOperation {
 public:
  explicit Countdown(int& left) : left_(left) {}
  bool test() override { return --left_ <= 0; }
  std::string missing() const override { return "nobody"; }

 private:
  int& left_;
};

Request request_of(int& left) { return {"countdown", std::make_unique<Countdown>(left)}; }

void spin(int64_t nanoseconds) {
  const int64_t end = trace_clock_ns() + nanoseconds;
  while (trace_clock_ns() < end) {
  }
}

TEST(Poller, DrivesWhatItWatchesToItsEnd) {
  int left = 3;
  Request request = request_of(left);
  Poller poller({.polls_per_exchange = 10});
  poller.watch(request);
  for (int i = 0; i < 100 && !request.done(); ++i) {
    spin(30'000);
    poller.point();
  }
  EXPECT_TRUE(request.done());
  const PollCount count = poller.take_count();
  EXPECT_EQ(count.polls, 3);
  EXPECT_EQ(count.exchanges, 1);
  EXPECT_GT(count.nanoseconds, 0);
  EXPECT_EQ(poller.take_count().polls, 0);
}

TEST(Poller, NeverTestsWhatIsNotWatchedOrWithoutPolls) {
  int left = 1000;
  Request request = request_of(left);
  Poller none({.polls_per_exchange = 0});
  none.watch(request);
  Poller unwatched({.polls_per_exchange = 10});
  unwatched.watch(request);
  unwatched.unwatch(request);
  for (int i = 0; i < 10; ++i) {
    spin(30'000);
    none.point();
    unwatched.point();
  }
  EXPECT_EQ(left, 1000);
  left = 1;
  EXPECT_TRUE(request.test());
}

// Exchanges of 4 ms are to be polled every 400 us; that one ended in somebody's wait counts as much as in a poll.
TEST(Poller, LearnsHowLongExchangesTake) {
  Poller poller({.polls_per_exchange = 10});
  const double at_first = poller.interval_us();
  for (int round = 0; round < 3; ++round) {
    int left = 1;
    Request request = request_of(left);
    poller.watch(request);
    spin(4'000'000);
    EXPECT_TRUE(request.test());
    poller.unwatch(request);
  }
  EXPECT_GE(poller.interval_us(), 400.0);
  EXPECT_GT(poller.interval_us(), at_first);
  EXPECT_EQ(poller.take_count().exchanges, 3);
}

TEST(Poller, LearnsNothingFromOtherRequests) {
  Poller poller({.polls_per_exchange = 10});
  const double at_first = poller.interval_us();
  int left = 1;
  Request request = request_of(left);
  poller.watch(request, Poller::Kind::other);
  spin(4'000'000);
  EXPECT_TRUE(request.test());
  poller.unwatch(request);
  EXPECT_EQ(poller.interval_us(), at_first);
  EXPECT_EQ(poller.take_count().exchanges, 0);
}

// Passes a, b, c push two parts of one and of two items, each pass at its own pace.
TEST(DeferredMerge, HandsOnPartByPartInTheOrderOfPasses) {
  Tracer tracer;
  DeferredQueue queue;
  DeferredMerge merge(queue, 3);
  std::string ran;
  const auto push = [&](size_t pass, const std::string& item) {
    merge.queue(pass).push({}, [&, item] { ran += item + ' '; });
  };
  const auto run_all = [&] {
    while (queue.run_one(tracer)) {
    }
  };
  push(2, "c0"), merge.queue(2).end_part();
  push(1, "b0"), merge.queue(1).end_part();
  push(2, "c1"), push(2, "c2"), merge.queue(2).end_part();
  run_all();
  EXPECT_EQ(ran, "");
  push(0, "a0");
  run_all();
  EXPECT_EQ(ran, "");
  merge.queue(0).end_part();
  push(0, "a1"), push(0, "a2");
  run_all();
  EXPECT_EQ(ran, "a0 b0 c0 ");
  push(1, "b1"), push(1, "b2"), merge.queue(1).end_part();
  merge.queue(0).end_part();
  run_all();
  EXPECT_EQ(ran, "a0 b0 c0 a1 a2 b1 b2 c1 c2 ");
  EXPECT_EQ(queue.num_pushed(), 9U);
}

TEST(DeferredQueue, RunsTheOldestFirstAndUpToACount) {
  DeferredQueue queue;
  Tracer tracer;
  std::vector<int> ran;
  const auto push = [&](int i) { queue.push({}, [&ran, i] { ran.push_back(i); }); };
  EXPECT_FALSE(queue.run_one(tracer));
  push(0);
  push(1);
  const uint64_t two = queue.num_pushed();
  push(2);
  EXPECT_TRUE(queue.run_one(tracer));
  queue.run_first(two, tracer);
  EXPECT_EQ(ran, (std::vector<int>{0, 1}));
  queue.run_first(two, tracer);
  EXPECT_EQ(ran.size(), 2U) << "they have run";
  queue.run_first(queue.num_pushed(), tracer);
  EXPECT_EQ(ran, (std::vector<int>{0, 1, 2}));
}

// Two passes of a plain queue and one of a merge, of parts 0 and 1 each: part 0 of all, then part 1, each in the order of passes;
// what no part waits for comes last, in the order of passes, too.
TEST(DeferredQueue, RunsEarlyPartsFirstWhenAsked) {
  DeferredQueue queue;
  Tracer tracer;
  std::string ran;
  const auto push = [&](DeferredQueue& to, const std::string& item) {
    to.push({}, [&ran, item] { ran += item + ' '; });
  };
  const auto push_last = [&](DeferredQueue& to, const std::string& item) {
    to.push_last({}, [&ran, item] { ran += item + ' '; });
  };
  for (const char* pass : {"a", "b"}) {
    queue.begin_pass();
    push_last(queue, pass + std::string("x"));
    push(queue, pass + std::string("0"));
    queue.end_part();
    push(queue, pass + std::string("1"));
    push(queue, pass + std::string("1"));
    queue.end_part();
  }
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(queue.run_one(tracer));
  EXPECT_EQ(ran, "ax a0 a1 ");
  queue.run_early_parts_first();
  DeferredMerge merge(queue, 1);
  push_last(merge.queue(0), "cx");
  push(merge.queue(0), "c0");
  merge.queue(0).end_part();
  push(merge.queue(0), "c1");
  merge.queue(0).end_part();
  queue.run_first(queue.num_pushed(), tracer);
  EXPECT_EQ(ran, "ax a0 a1 b0 c0 a1 b1 b1 c1 bx cx ");
}

}  // namespace
}  // namespace cadre::poll_test
