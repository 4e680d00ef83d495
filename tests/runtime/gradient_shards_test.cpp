// SPDX-License-Identifier: Apache-2.0
// Gradients that are dropped to the shard of the rank that keeps the moments: the bits of the run that keeps them all, what
// memory they take, and where that is refused.
#include "runtime/parallel/gradient_shards.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "runtime/train/memory_plan.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::gradient_shards_test {
namespace {

using test::Outcome;
using test::outcome_of;
using test::RunFolder;
using test::small_run;

RunConfig sharded(RunConfig config) {
  config.parallel.shard_gradients = true;
  return config;
}

// One pass of each stage: sums have the same terms in the same order. Experts on one rank, on two, on all.
RunConfig one_pass(const RunFolder& folder) {
  RunConfig config = small_run(folder.path());
  config.train.micro_batches = 1;
  config.parallel.expert = 1;
  return config;
}

void expect_same_bits(Communicator& world, const RunConfig& config) {
  const Outcome whole = outcome_of(world.duplicate("whole"), config, 5);
  EXPECT_EQ(outcome_of(world.duplicate("sharded"), sharded(config), 5), whole);
  EXPECT_NE(whole.losses.front(), whole.losses.back());
}

TEST(GradientShards, ChangeNoBit) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        std::vector<RunConfig> configs(4, one_pass(folder));
        configs[1].train.stages = "gate:2,experts:2,all";
        configs[2].parallel.expert = 0;
        configs[2].model.tie_word_embeddings = true;
        configs[3].model.num_nextn_predict_layers = 1;
        configs[3].train.recompute = "layer";
        configs[3].train.optim.name = "muon";
        if (world.size() > 1) {
          configs.push_back(one_pass(folder));
          configs.back().parallel.expert = 0;
          configs.back().parallel.redundant_experts = world.size();
        }
        if (world.size() % 2 == 0) {
          configs.push_back(one_pass(folder));
          configs.back().parallel.expert = 2;
          configs.back().exchange.gradients = "bf16";
        }
        for (size_t i = 0; i < configs.size(); ++i) {
          SCOPED_TRACE(i);
          expect_same_bits(world, configs[i]);
        }
      },
      {1, 2, 3, 4});
}

// The two ends of the pipeline hold the embedding.
TEST(GradientShards, ChangeNoBitOfAPipeline) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        for (const char* schedule : {"1f1b", "zb1p"}) {
          SCOPED_TRACE(schedule);
          RunConfig config = one_pass(folder);
          config.parallel.pipeline = 2;
          config.parallel.schedule = schedule;
          config.model.tie_word_embeddings = true;
          expect_same_bits(world, config);
        }
      },
      {2, 4});
}

// Sums of each pass are added, so that they are rounded in another order than where passes are added first; overlap and schedules
// change no bit of them.
TEST(GradientShards, AddTheSumsOfPasses) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.parallel.expert = 1;
        config.train.batch = 15;
        config.train.micro_batches = 5;
        const Outcome whole = outcome_of(world.duplicate("whole"), config, 6);
        const Outcome serial = outcome_of(world.duplicate("serial"), sharded(config), 6);
        for (size_t i = 0; i < whole.losses.size(); ++i) {
          EXPECT_NEAR(serial.losses[i], whole.losses[i], 1e-6 * whole.losses[i]) << "step " << i + 1;
        }
        config.parallel.schedule = "pair";
        for (const auto& [ramp, postponed] : {std::pair{1, 1}, {2, 1}, {3, 2}}) {
          SCOPED_TRACE(fmt::format("ramp {}, postponed {}", ramp, postponed));
          config.parallel.ramp = ramp;
          config.parallel.postponed = postponed;
          EXPECT_EQ(outcome_of(world.duplicate("pair"), sharded(config), 6), serial);
        }
      },
      {2, 3});
}

TEST(GradientShards, AddTheSumsOfPassesOfAPipeline) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.parallel.expert = 1;
        config.parallel.pipeline = 2;
        config.model.num_hidden_layers = 4;
        config.model.tie_word_embeddings = true;
        config.train.batch = 8;
        config.train.micro_batches = 4;
        for (const char* schedule : {"1f1b", "zb1p", "dualpipev"}) {
          SCOPED_TRACE(schedule);
          config.parallel.schedule = schedule;
          const Outcome whole = outcome_of(world.duplicate("whole"), config, 6);
          const Outcome dropped = outcome_of(world.duplicate("sharded"), sharded(config), 6);
          for (size_t i = 0; i < whole.losses.size(); ++i) {
            EXPECT_NEAR(dropped.losses[i], whole.losses[i], 1e-6 * whole.losses[i]) << "step " << i + 1;
          }
        }
      },
      {4});
}

// Behind a step a rank has the gradients of its share alone, as the plan says.
TEST(GradientShards, KeepAShare) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig config = sharded(one_pass(folder));
        Trainer trainer(world.duplicate("run"), config);
        trainer.step();
        int64_t kept = 0;
        for (const Parameter* parameter : trainer.worker().store().parameters()) {
          if (!is_trained(parameter->placement)) continue;
          const bool is_here = parameter->grad.raw() != nullptr;
          EXPECT_EQ(is_here, trainer.worker().shards().keeps(*parameter)) << parameter->name();
          if (is_here) kept += parameter->value.numel();
        }
        EXPECT_EQ(trainer.worker().store().grad_bytes(), 0U);
        const int64_t all =
            trainer.worker().store().numel(Placement::shared) + trainer.worker().store().numel(Placement::expert);
        EXPECT_LE(static_cast<double>(kept), 1.02 * static_cast<double>(all) / world.size());
        EXPECT_EQ(wait(world.all_reduce(kept, ReduceOp::sum)), all);
      },
      {2, 3, 4});
}

size_t planned(const RunConfig& config, const char* what) {
  const MemoryPlan plan = plan_memory(config, Topology::uniform(1, 4), 0);
  const auto line = std::ranges::find(plan.lines, what, &MemoryLine::what);
  return line == plan.lines.end() ? 0 : line->bytes;
}

// Large enough that the pages of a process are small beside them: 12 layers of 4.5 MiB, of which two are on their way at a time.
TEST(GradientShards, ArePlanned) {
  RunConfig config = small_run("unused");
  config.model.hidden_size = 256;
  config.model.num_hidden_layers = 12;
  config.model.first_k_dense_replace = 0;
  config.model.moe_intermediate_size = 128;
  config.parallel.expert = 1;
  config.train.batch = 8;
  const size_t whole = planned(config, "gradients");
  EXPECT_EQ(planned(config, "gradients of passes"), 0U);
  config = sharded(config);
  EXPECT_NEAR(static_cast<double>(planned(config, "gradients")), static_cast<double>(whole) / 4.0,
              0.05 * static_cast<double>(whole));
  EXPECT_NEAR(static_cast<double>(planned(config, "gradients of passes")), static_cast<double>(whole) / 6.0,
              0.05 * static_cast<double>(whole));
}

TEST(GradientShards, AreRefusedWhereTheyCannotBeDropped) {
  const RunConfig config = sharded(small_run("unused"));
  check(config, 4);
  const auto message = [&](auto change) {
    RunConfig changed = config;
    change(changed);
    return test::message_of([&] { check(changed, 4); });
  };
  const auto expect = [&](const std::string& text, const char* reason) {
    test::expect_message(text, {"parallel.shard_gradients = true", reason, "allowed: false"});
  };
  expect(message([](RunConfig& c) { c.parallel.shard_optimizer = false; }), "parallel.shard_optimizer = false");
  expect(message([](RunConfig& c) { c.compute.device = "cuda"; }), "compute.device = cuda");
  expect(message([](RunConfig& c) {
           c.parallel.pipeline = 2;
           c.model.num_hidden_layers = 4;
           c.train.batch = 8;
           c.train.micro_batches = 4;
           c.parallel.schedule = "dualpipe";
         }),
         "dualpipe");
  expect(message([](RunConfig& c) {
           c.parallel.expert = 2;
           c.exchange.balance = "host";
         }),
         "exchange.balance = host");
  expect(message([](RunConfig& c) {
           c.parallel.expert = 2;
           c.parallel.rebalance = 4;
         }),
         "parallel.rebalance");
  RunConfig all = config;  // no other rank holds an expert that guests add to, or that moves
  all.exchange.balance = "host";
  all.parallel.rebalance = 4;
  check(all, 4);
}

}  // namespace
}  // namespace cadre::gradient_shards_test
