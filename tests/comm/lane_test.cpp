// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"
#include "comm/progress/engine.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::lane_test {
namespace {

using test::on_ranks;

Lane make_lane(Communicator& world, int id) { return {id, world.duplicate("expert"), world.duplicate("data")}; }

// A nested task: one all_reduce, and the sum comes back.
Task<int> sum_over_ranks(const Communicator& group, int value) {
  co_return co_await group.all_reduce(value, ReduceOp::sum);
}

Task<void> two_rounds(Lane& lane, std::vector<int>& results) {
  for (int round = 1; round <= 2; ++round) {
    results.push_back(co_await sum_over_ranks(lane.expert_group(), round * (lane.id() + 1)));
  }
}

TEST(Lane, runs_nested_tasks_to_the_end) {
  on_ranks([](Communicator& world) {
    Lane lane = make_lane(world, 0);
    std::vector<int> results;
    Task<void> task = two_rounds(lane, results);
    Engine().run(lane, task);
    EXPECT_EQ(results, (std::vector<int>{world.size(), 2 * world.size()}));
  });
}

// Lanes meet in a different order on each rank; their own communicators keep the exchanges apart.
TEST(Lane, two_lanes_interleave_in_any_order) {
  on_ranks([](Communicator& world) {
    Lane first = make_lane(world, 0);
    Lane second = make_lane(world, 1);
    std::vector<int> first_results, second_results;
    Task<void> first_task = two_rounds(first, first_results);
    Task<void> second_task = two_rounds(second, second_results);
    if (world.rank() % 2 == 0) {
      Engine().run({{&first, &first_task}, {&second, &second_task}});
    } else {
      Engine().run({{&second, &second_task}, {&first, &first_task}});
    }
    EXPECT_EQ(first_results, (std::vector<int>{world.size(), 2 * world.size()}));
    EXPECT_EQ(second_results, (std::vector<int>{2 * world.size(), 4 * world.size()}));
  });
}

Task<void> hear_from(Lane& lane, int peer, Buffer& into) {
  lane.position = {.step = 4, .layer = 2, .phase = "combine"};
  Request request = lane.expert_group().receive(into.span(), into.share(), peer, 0);
  co_await request;
}

Task<void> fail_after_a_wait(Lane& lane) {
  Request barrier = lane.expert_group().barrier();
  co_await barrier;
  throw Error(ErrorKind::numerics, "a NaN");
}

TEST(Engine, a_missing_message_is_named_when_the_deadline_passes) {
  on_ranks(
      [](Communicator& world) {
        Lane lane = make_lane(world, 0);
        const int peer = 1 - world.rank();
        Buffer bytes(8);
        Task<void> task = hear_from(lane, peer, bytes);
        try {
          Engine(0.05).run(lane, task);
          FAIL() << "the wait ended";
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), ErrorKind::timeout);
          EXPECT_NE(error.text().find("step 4, layer 2, combine"), std::string::npos) << error.text();
          EXPECT_NE(error.text().find(fmt::format("rank {} (expected 8 bytes", peer)), std::string::npos);
        }
        // Once both have given up, let each have its message, so that the group ends clean.
        Request barrier = world.barrier();
        wait(barrier);
        Request sent = lane.expert_group().transport().send(bytes.span(), peer, 0);
        wait(sent);
      },
      {2});
}

TEST(Engine, what_a_task_throws_reaches_the_caller) {
  on_ranks([](Communicator& world) {
    Lane lane = make_lane(world, 0);
    Task<void> task = fail_after_a_wait(lane);
    EXPECT_THROW(Engine().run(lane, task), Error);
  });
}

TEST(Trace, keeps_the_newest_events_and_all_the_time) {
  TraceRecorder recorder(2);
  for (int i = 1; i <= 3; ++i) recorder.add({TraceKind::wait, {.step = i}, 100 * i, 100 * i + 50});
  const std::vector<TraceEvent> events = recorder.events();
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].at.step, 2);
  EXPECT_EQ(events[1].at.step, 3);
  EXPECT_EQ(recorder.num_lost(), 1U);
  EXPECT_EQ(recorder.take_totals()[static_cast<size_t>(TraceKind::wait)], 150);
  EXPECT_EQ(recorder.take_totals()[static_cast<size_t>(TraceKind::wait)], 0);
}

TEST(Trace, activities_follow_each_other_without_gaps) {
  TraceRecorder recorder(16);
  Tracer tracer;
  {
    const TraceScope scope(tracer, recorder);
    const TraceSpan step(tracer, TraceKind::step, {.step = 1});
    tracer.switch_to({.phase = "router"});
    {
      TraceActivity wait(tracer, TraceKind::wait, {});
      wait.relabel({.phase = "dispatch"});
      while (trace_clock_ns() == recorder.activity().begin_ns) {
      }
    }
    while (trace_clock_ns() == recorder.activity().begin_ns) {
    }
    recorder.end();
  }
  std::vector<TraceEvent> activities = recorder.events();
  EXPECT_EQ(activities.back().kind, TraceKind::step);
  EXPECT_GE(activities.back().end_ns, activities[activities.size() - 2].end_ns);
  activities.pop_back();
  ASSERT_GE(activities.size(), 2U);
  EXPECT_STREQ(activities.back().at.phase, "router");
  const TraceEvent& wait = activities[activities.size() - 2];
  EXPECT_EQ(wait.kind, TraceKind::wait);
  EXPECT_STREQ(wait.at.phase, "dispatch");
  for (size_t i = 1; i < activities.size(); ++i) EXPECT_EQ(activities[i - 1].end_ns, activities[i].begin_ns);
}

}  // namespace
}  // namespace cadre::lane_test
