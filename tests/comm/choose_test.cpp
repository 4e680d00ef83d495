// SPDX-License-Identifier: Apache-2.0
// The choice of a strategy: what the cost model says, and that all ranks take the same.
#include "comm/exchange/choose.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "comm/base/check.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::choose_test {
namespace {

ExchangeWorkload workload(int64_t tokens, int top_k, int64_t width = 2048) {
  return {.tokens = tokens, .top_k = top_k, .dispatch = {DType::f32, width}, .combine = {DType::f32, width}};
}

// 2 us and 5 GB/s inside a host, 20 us and 1 GB/s between hosts, 10 GB/s memcpy.
const CostModel kCluster = {{2e-6, 0.2e-9}, {20e-6, 1e-9}, 0.1e-9};

std::string first(const ExchangeWorkload& work, const Topology& topology, const CostModel& costs = kCluster) {
  return predict(work, topology, costs).front().strategy;
}

TEST(Choose, reads_in_place_inside_a_host_and_crosses_once_between_hosts) {
  EXPECT_EQ(first(workload(4096, 8), Topology::uniform(1, 8)), "shared");
  EXPECT_EQ(first(workload(4096, 8), Topology::uniform(4, 8)), "hierarchical");
}

// Where each token goes to one expert there is nothing to save between hosts of one rank each.
TEST(Choose, equals_go_to_the_simpler) {
  EXPECT_EQ(first(workload(64, 1), Topology::uniform(8, 1), {{0, 0}, {20e-6, 1e-9}, 0.1e-9}), "hierarchical");
  const auto predictions = predict(workload(64, 1), Topology::uniform(8, 1), kCluster);
  EXPECT_EQ(
      std::count_if(predictions.begin(), predictions.end(), [](const Prediction& p) { return p.strategy == "shared"; }),
      0)
      << "shared cannot span hosts";
}

TEST(Choose, a_slower_network_costs_each_strategy_what_it_sends_over_it) {
  const Topology topology = Topology::uniform(4, 8);
  const auto seconds = [&](const std::string& strategy, const CostModel& costs) {
    const auto predictions = predict(workload(4096, 8), topology, costs);
    return std::find_if(predictions.begin(), predictions.end(),
                        [&](const Prediction& p) { return p.strategy == strategy; })
        ->seconds;
  };
  CostModel slower = kCluster;
  slower.network.beta_s *= 2.0;
  const double flat = seconds("flat", slower) - seconds("flat", kCluster);
  const double hierarchical = seconds("hierarchical", slower) - seconds("hierarchical", kCluster);
  // 8 experts hit 7.15 of 32 ranks and 3.6 of 4 hosts: a row crosses half as often.
  EXPECT_NEAR(hierarchical / flat, 3.5996 / 7.1764, 2e-3);
}

TEST(Choose, takes_what_can_be_made_and_the_same_everywhere) {
  test::on_ranks([](Communicator& world) {
    const ExchangeSetup setup = {.group = world,
                                 .topology = discover_topology(world),
                                 .max_tokens = 16,
                                 .top_k = 2,
                                 .max_row_bytes = 256,
                                 .memory_bytes = 1 << 16};
    const Choice choice = choose_exchange(setup, workload(16, 2, 64));
    EXPECT_TRUE(choice.reason.starts_with(choice.exchange->name())) << choice.reason;
    const auto length = static_cast<int64_t>(choice.exchange->name().size());
    for (const int64_t other : wait(world.all_gather(length))) EXPECT_EQ(other, length);
  });
}

// More than any host has: another strategy is taken, and the reason says what was missing.
TEST(Choose, falls_back_where_the_host_has_not_the_memory) {
  if (!test::runs_under_mpi()) GTEST_SKIP() << "thread ranks have no limit of their own";
  test::on_ranks(
      [](Communicator& world) {
        const ExchangeSetup setup = {.group = world,
                                     .topology = discover_topology(world),
                                     .max_tokens = 16,
                                     .top_k = 2,
                                     .max_row_bytes = 256,
                                     .memory_bytes = size_t{1} << 50};
        const Choice choice = choose_exchange(setup, workload(16, 2, 64));
        EXPECT_TRUE(choice.exchange->name() == "flat" || choice.exchange->name() == "all_gather");
        EXPECT_NE(choice.reason.find("/dev/shm has"), std::string::npos) << choice.reason;
      },
      {2, 4});
}

TEST(Choose, shared_between_hosts_is_refused_with_the_way_out) {
  test::on_ranks(
      [](Communicator& world) {
        const ExchangeSetup setup = {.group = world, .topology = Topology::uniform(world.size(), 1), .max_tokens = 1};
        try {
          make_exchange("shared", setup);
          FAIL() << "no error";
        } catch (const Error& error) {
          EXPECT_NE(std::string(error.what()).find("on 2 hosts"), std::string::npos) << error.what();
          EXPECT_NE(error.hint().find("hierarchical"), std::string::npos) << error.hint();
        }
      },
      {2});
}

}  // namespace
}  // namespace cadre::choose_test
