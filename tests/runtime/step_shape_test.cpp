// SPDX-License-Identifier: Apache-2.0
// What a step consists of, against numbers worked out by hand; and the file of a machine.
#include "runtime/plan/step_shape.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/plan/predict_step.hpp"
#include "tests/support/planned_run.hpp"

namespace cadre::step_shape_test {
namespace {

using test::machine_of_tens;
using test::small_run;
using ::testing::HasSubstr;

double compute_of(const PassParts& parts) {
  double seconds = 0.0;
  for (const PassPart& part : parts) seconds += part.kind == PartKind::compute ? part.seconds : 0.0;
  return seconds;
}

std::vector<PassPart> starts_of(const PassParts& parts) {
  std::vector<PassPart> starts;
  for (const PassPart& part : parts) {
    if (part.kind == PartKind::start) starts.push_back(part);
  }
  return starts;
}

TEST(Machine, a_file_is_read_back_as_it_was_written) {
  const Machine machine = machine_of_tens();
  EXPECT_EQ(parse_machine(to_toml(machine), "C.toml"), machine);
}

TEST(Machine, a_file_that_lacks_or_adds_a_key_is_refused_by_name) {
  const auto error_of = [](std::string text) {
    try {
      parse_machine(text, "C.toml");
    } catch (const Error& error) {
      return std::string(error.text());
    }
    return std::string("none");
  };
  std::string text = to_toml(machine_of_tens());
  const auto without = [&](const std::string& part, const std::string& instead) {
    std::string changed = text;
    return changed.replace(changed.find(part), part.size(), instead);
  };
  EXPECT_THAT(error_of(without("[network]", "[netwrk]")), HasSubstr("[network] is missing"));
  EXPECT_THAT(error_of(without("update = 8.5", "")), HasSubstr("rows.update is missing"));
  EXPECT_THAT(error_of(without("update = 8.5", "update = 0")), HasSubstr("rows.update = 0"));
  EXPECT_THAT(error_of(text + "\n[more]\nx = 1\n"), HasSubstr("unknown section [more]"));
  EXPECT_THAT(error_of("[peak"), HasSubstr("C.toml:1"));
}

TEST(Machine, rates_of_experts_lie_between_those_of_the_sizes_that_were_measured) {
  const Machine machine = machine_of_tens();
  EXPECT_EQ(machine.experts_with(4), (ProductRate{5, 6, 7}));
  EXPECT_EQ(machine.experts_with(12), (ProductRate{10, 16, 22}));
  EXPECT_EQ(machine.experts_with(100), (ProductRate{15, 26, 37}));
  EXPECT_EQ(machine.peak_gflops(), 40);
}

// 8 sequences in 2 micro-batches on 2 ranks: 2 sequences of 16, T = 32 tokens a rank, 8 rows an expert of 8 (2 x 2 x 32 / 8 = 16).
// Attention: 4 x 8 x 8 = 256 elements, 16 x 17 FLOPs of scores a token; dense 3 x 8 x 16 = 384; router 64; shared 96; an
// expert 96, two met; head 512.
TEST(StepShape, works_as_the_elements_of_the_layers_say) {
  const StepShape shape = shape_step(small_run(), Topology::uniform(1, 2), machine_of_tens());
  ASSERT_EQ(shape.stages.size(), 1U);
  const double tokens = 32;
  EXPECT_EQ(shape.tokens, tokens);
  const double attention = tokens * (2 * 256 + 16 * 17);
  const double row_bytes = tokens * 8 * 4;
  // Of 8 experts 4 are on the other rank: both of a token are here in 3/14 of the cases, and a row there in 11/14.
  const double copies = 2 * 11.0 / 14.0;
  const double forward = 0.5 * row_bytes / 1.5e9 + 2 * attention / 10e9 + tokens * 2 * 384 / 21e9 +
                         tokens * 2 * 64 / 1e9 + row_bytes * copies / 2.5e9 + tokens * 2 * 96 / 11e9 +
                         tokens * 2 * 2 * 96 / 15e9 + row_bytes * (2 + copies) / 3.5e9 + tokens * 2 * 512 / 31e9;
  EXPECT_NEAR(compute_of(shape.stages[0].forward), forward, 1e-6 * forward);
  const double backward = tokens * 2 * 512 / 32e9 + row_bytes * copies / 4.5e9 + tokens * 2 * 96 / 12e9 +
                          tokens * 2 * 2 * 96 / 26e9 + tokens * 2 * 64 / 2e9 + row_bytes * (2 + copies) / 5.5e9 +
                          2 * attention / 20e9 + tokens * 2 * 384 / 22e9 + 0.5 * row_bytes / 1.5e9;
  EXPECT_NEAR(compute_of(shape.stages[0].backward), backward, 1e-6 * backward);
  double deferred = 0.0;
  for (const PassPart& part : shape.stages[0].backward) deferred += is_deferred(part) ? part.seconds : 0.0;
  const double weights = tokens * 2 * 512 / 33e9 + tokens * 2 * 96 / 13e9 + tokens * 2 * 2 * 96 / 37e9 +
                         tokens * 2 * 64 / 4e9 + 2 * attention / 40e9 + tokens * 2 * 384 / 23e9;
  EXPECT_NEAR(deferred, weights, 1e-6 * weights);
}

// Half of the row copies go to the other rank, whose link is the network where it is on another host.
TEST(StepShape, exchanges_what_the_other_rank_needs) {
  const double bytes = 32 * 8 * 4 * 11.0 / 14.0;
  for (const int hosts : {1, 2}) {
    const LinkCost link = hosts == 1 ? LinkCost{1e-6, 1e-10} : LinkCost{1e-5, 1e-9};
    const StepShape shape = shape_step(small_run(), Topology::uniform(hosts, 2 / hosts), machine_of_tens());
    const std::vector<PassPart> forward = starts_of(shape.stages[0].forward);
    ASSERT_EQ(forward.size(), 3U) << "counts, rows, sums";
    EXPECT_NEAR(forward[0].seconds, 0.0, 1e-15);
    EXPECT_NEAR(forward[0].latency, link.alpha_s, 1e-15);
    for (const size_t i : {1, 2}) {
      EXPECT_NEAR(forward[i].seconds, bytes * link.beta_s, 1e-6 * bytes * link.beta_s);
      EXPECT_NEAR(forward[i].latency, link.alpha_s, 1e-15);
    }
    EXPECT_EQ(starts_of(shape.stages[0].backward).size(), 3U) << "rows, numbers, sums";
  }
  EXPECT_TRUE(starts_of(shape_step(small_run(), Topology::uniform(1, 1), machine_of_tens()).stages[0].forward).empty());
}

// 4 ranks on 2 hosts, one group: 16 tokens a rank, rows of 32 bytes, 2 experts of 8 a token and 2 of them on each rank. A token
// is needed on 4 (1 - 6/8 5/7) = 13/7 ranks and on 2 (1 - 4/8 3/7) = 11/7 hosts. Each rank has one neighbour and two peers far away.
TEST(StepShape, each_strategy_pays_for_what_it_sends_over_which_link) {
  RunConfig config = small_run();
  const LinkCost host = machine_of_tens().host;
  const LinkCost network = machine_of_tens().network;
  const auto expect_exchange = [&](const char* strategy, const Topology& topology, LinkTime dispatch,
                                   LinkTime combine) {
    SCOPED_TRACE(strategy);
    config.exchange.strategy = strategy;
    const StepShape shape = shape_step(config, topology, machine_of_tens());
    EXPECT_EQ(shape.strategy, strategy);
    const std::vector<PassPart> forward = starts_of(shape.stages[0].forward);
    ASSERT_EQ(forward.size(), 3U) << "counts, rows, sums";
    EXPECT_NEAR(forward[1].seconds, dispatch.busy_s, 1e-12);
    EXPECT_NEAR(forward[1].latency, dispatch.latency_s, 1e-12);
    EXPECT_NEAR(forward[2].seconds, combine.busy_s, 1e-12);
    EXPECT_NEAR(forward[2].latency, combine.latency_s, 1e-12);
  };
  const Topology hosts = Topology::uniform(2, 2);
  // To each rank a quarter of the row copies, of which the own one stays.
  const double quarter = 16 * 13.0 / 7.0 * 32 / 4;
  const LinkTime flat = {quarter * host.beta_s + 2 * quarter * network.beta_s, host.alpha_s + 2 * network.alpha_s};
  expect_exchange("flat", hosts, flat, flat);
  // A row crosses once to half of the hosts that need it, and its sum comes back; two looks at neighbours beside.
  const double crossing = 16 * 11.0 / 7.0 / 2 * 32;
  const LinkTime once = {crossing * network.beta_s, network.alpha_s + 2 * host.alpha_s};
  expect_exchange("hierarchical", hosts, once, once);
  // All rows to all ranks, and the list of those that each is to take; sums come back as in flat.
  const double all = 16 * 32;
  expect_exchange("all_gather", hosts,
                  {all * host.beta_s + 2 * all * network.beta_s, 2 * (host.alpha_s + 2 * network.alpha_s)}, flat);
  // On one host nothing travels: 3 neighbours say where their rows are.
  const LinkTime told = {0.0, 3 * host.alpha_s};
  expect_exchange("shared", Topology::uniform(1, 4), told, told);
}

// Of more ranks than a group of experts has, only its own hosts count: 8 ranks on 4 hosts, groups of 2 on one host each.
TEST(StepShape, auto_takes_what_the_run_would_take_between_these_ranks) {
  RunConfig config = small_run();
  config.exchange.strategy = "auto";
  Machine machine = machine_of_tens();
  machine.dispatch = 1000;  // copies cost nothing
  machine.network = {1e-5, 1e-5};
  const auto strategy_on = [&](int hosts, int ranks_a_host, int expert) {
    config.parallel.expert = expert;
    return shape_step(config, Topology::uniform(hosts, ranks_a_host), machine).strategy;
  };
  EXPECT_EQ(strategy_on(4, 2, 2), "shared");
  EXPECT_EQ(strategy_on(2, 4, 8), "hierarchical");
  EXPECT_EQ(strategy_on(1, 1, 1), "flat") << "one rank";
  for (const auto& [hosts, ranks] : {std::pair(1, 4), std::pair(2, 2), std::pair(4, 1)}) {
    const ExchangeWorkload workload = {
        .tokens = 16, .top_k = 2, .dispatch = {DType::f32, 8}, .combine = {DType::f32, 8}, .experts = 8};
    const CostModel costs = {machine.host, machine.network, 1e-12};
    EXPECT_EQ(strategy_on(hosts, ranks, 4), predict(workload, Topology::uniform(hosts, ranks), costs).front().strategy);
  }
}

// The embedding, 64 x 8 elements, is its bucket, and the first rank's: with a sharded state one rank gets all of it and sends it.
// Else each sums half of it and hands that to the other. Experts are on one rank each.
TEST(StepShape, sums_what_the_ranks_have_in_common) {
  RunConfig config = small_run();
  const auto bucket_of = [&](int bucket) {
    return shape_step(config, Topology::uniform(2, 1), machine_of_tens())
        .stages[0]
        .buckets[static_cast<size_t>(bucket)];
  };
  const double message = 0.5 * 1e-5;  // one piece, of which two are under way
  EXPECT_NEAR(bucket_of(0).reduce_s, 512 * 4e-9 + message, 1e-12);
  EXPECT_NEAR(bucket_of(0).values_s, 512 * 4e-9 + message, 1e-12);
  EXPECT_NEAR(bucket_of(0).add_s, 512 * 4 / 6.5e9, 1e-12);
  config.exchange.gradients = "bf16";
  EXPECT_NEAR(bucket_of(0).reduce_s, 512 * 2e-9 + message, 1e-12);
  EXPECT_NEAR(bucket_of(0).values_s, 512 * 4e-9 + message, 1e-12);
  config.exchange.gradients = "fp32";
  config.parallel.shard_optimizer = false;
  EXPECT_NEAR(bucket_of(0).reduce_s, 2 * (256 * 4e-9 + message), 1e-12);
  EXPECT_EQ(bucket_of(0).values_s, 0.0);
  // Attention, dense network and two norms.
  EXPECT_NEAR(bucket_of(1).reduce_s, 2 * ((256 + 384 + 16) / 2 * 4e-9 + message), 1e-12);
}

// Of 4 ranks on 4 hosts, a parameter is one rank's: from 3 others it gets the embedding, which is more than a sum of quarters
// that are handed to all would move; its new values go out in quarters, and these to all.
TEST(StepShape, a_parameter_that_is_its_bucket_is_summed_and_gathered_in_parts) {
  RunConfig config = small_run();
  config.parallel.expert = 2;
  const BucketTraffic traffic = shape_step(config, Topology::uniform(4, 1), machine_of_tens()).stages[0].buckets[0];
  const double messages = 0.5 * 3 * 1e-5;
  EXPECT_NEAR(traffic.reduce_s, 2 * (3 * 128 * 4e-9 + messages), 1e-12);
  EXPECT_NEAR(traffic.values_s, 2 * (3 * 128 * 4e-9 + messages), 1e-12);
}

// On devices a ring sums 3/4 of the embedding twice, over one peer of the host and two far ones, and 2 steps of a tree each way;
// one rank keeps it and sends it on.
TEST(StepShape, devices_sum_and_send_on_by_rings_and_trees) {
  RunConfig config = small_run();
  config.parallel.expert = 2;
  config.compute.device = "cuda";
  const BucketTraffic traffic = shape_step(config, Topology::uniform(2, 2), machine_of_tens()).stages[0].buckets[0];
  const double once = 512 * 3 / 4 * 4 * (1.0 / 3.0 * 1e-10 + 2.0 / 3.0 * 1e-9);
  EXPECT_NEAR(traffic.reduce_s, 2 * (once + 2 * 1e-5), 1e-12);
  EXPECT_NEAR(traffic.values_s, once + 2 * 1e-5, 1e-12);
  EXPECT_NEAR(traffic.add_s, 512 * 3 / 4 * 4 / 6.5e9, 1e-12);
}

TEST(StepShape, computes_layers_again_in_the_backward_pass) {
  RunConfig config = small_run();
  const auto compute_s = [&](const char* recompute, const PassParts StageTimes::*pass) {
    config.train.recompute = recompute;
    return compute_of(shape_step(config, Topology::uniform(1, 2), machine_of_tens()).stages[0].*pass);
  };
  const double forward = compute_s("none", &StageTimes::forward);
  const double backward = compute_s("none", &StageTimes::backward);
  const double ends = 0.5 * 32 * 8 * 4 / 1.5e9 + 32 * 2 * 512 / 31e9;  // embedding and head
  EXPECT_NEAR(compute_s("layer", &StageTimes::backward), backward + forward - ends, 1e-6 * backward);
  EXPECT_NEAR(compute_s("layer", &StageTimes::forward), forward, 1e-12);
  const double layer = 32 * (2 * 256 + 16 * 17) / 10e9 + 32 * 2 * 384 / 21e9;
  EXPECT_NEAR(compute_s("every:2", &StageTimes::backward), backward + layer, 1e-6 * backward) << "the first layer";
  const double attention = 2 * 32 * (2 * 256 + 16 * 17) / 10e9;
  EXPECT_NEAR(compute_s("attention", &StageTimes::backward), backward + attention, 1e-6 * backward);
}

// Of 10 slots of 5 tokens the first of 4 ranks has 7 and the second 1: on one host each computes 2.5 and 2 % at most, in pairs 4.
TEST(StepShape, ranks_that_share_rows_are_even) {
  const std::vector<std::vector<double>> counts = {{4, 3, 1, 0, 1, 0, 0, 1}};
  EXPECT_NEAR(skew_of({0}, counts, 2, 4).work_of(0), 2.8, 1e-9);
  EXPECT_NEAR(skew_of({0}, counts, 2, 4, 2).work_of(0), 1.6, 0.02 * 1.6);
  EXPECT_GE(skew_of({0}, counts, 2, 4, 2).work_of(0), 1.6 - 1e-9);
  EXPECT_NEAR(skew_of({0}, counts, 2, 4, 4).work_of(0), 1.0, 0.02);
  EXPECT_LT(skew_of({0}, counts, 2, 4, 4).rows_of(0), skew_of({0}, counts, 2, 4).rows_of(0));
  RunConfig config = small_run();
  EXPECT_EQ(ranks_that_share(config, 8, 4), 1);
  config.exchange.balance = "host";
  EXPECT_EQ(ranks_that_share(config, 8, 4), 4);
  EXPECT_EQ(ranks_that_share(config, 2, 4), 2);
  // One more small message in each layer.
  const Topology host = Topology::uniform(1, 2);
  config.exchange.balance = "none";
  const size_t messages = starts_of(shape_step(config, host, machine_of_tens()).stages[0].forward).size();
  config.exchange.balance = "host";
  EXPECT_EQ(starts_of(shape_step(config, host, machine_of_tens()).stages[0].forward).size(), messages + 1);
}

TEST(StepShape, busier_ranks_take_longer_and_are_awaited) {
  // Of 8 slots of 4 tokens 6 are on the first rank, whose share of rows is 1 - 1/4 (3/4)^3.
  const LoadSkew skew = skew_of({1}, {{3, 1, 1, 1, 1, 1, 0, 0}}, /*top_k=*/2, 2);
  EXPECT_DOUBLE_EQ(skew.work_of(1), 1.5);
  EXPECT_DOUBLE_EQ(skew.work_of(0), 1.0);
  const double hit = 1 - 0.25 * 0.75 * 0.75 * 0.75;
  EXPECT_DOUBLE_EQ(skew.rows_of(1), hit / (1 - std::pow(0.75, 4)));
  EXPECT_DOUBLE_EQ(skew_of({0}, {{4, 4, 4, 4, 4, 4, 4, 4}}, 2, 2).rows_of(0), 1.0);
  const Topology host = Topology::uniform(1, 2);
  const StepShape even = shape_step(small_run(), host, machine_of_tens());
  const StepShape busy = shape_step(small_run(), host, machine_of_tens(), skew);
  const double experts = 32 * 2 * 2 * 96 * (1 / 15e9 + 1 / 26e9 + 1 / 37e9);
  EXPECT_NEAR(busy.skew_s[0], 0.5 * experts, 1e-6 * experts);
  const double more = std::min(skew.rows_of(1), 2 / (2 * 11.0 / 14.0));
  EXPECT_NEAR(starts_of(busy.stages[0].forward)[1].seconds, more * starts_of(even.stages[0].forward)[1].seconds, 1e-15);
  const StepPrediction mean = predict_step(busy, 40);
  EXPECT_GT(mean.step_s, predict_step(even, 40).step_s);
  EXPECT_NEAR(mean.skew_s, 2 * 0.5 * 0.5 * experts, 1e-6 * experts)
      << "two micro-batches; half of the ranks are not busy";
  EXPECT_NEAR(mean.compute_s + mean.exposed_s + mean.idle_s, mean.step_s, 1e-12);
}

}  // namespace
}  // namespace cadre::step_shape_test
