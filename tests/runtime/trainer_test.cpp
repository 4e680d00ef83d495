// SPDX-License-Identifier: Apache-2.0
// A whole run: the answer does not depend on the number of ranks, a repeated command gives the same bits, and a resumed
// run goes on as if it had never stopped.
#include "runtime/train/trainer.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "comm/transport/local.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::trainer_test {
namespace {

using test::expect_close;
using test::Outcome;
using test::outcome_of;
using test::resumed;
using test::RunFolder;
using test::small_run;
using test::some_text;
using test::train;
using test::train_on_threads;

// Two micro-batches at once, or all, whatever the exchange: the same losses and weights as one after the other.
TEST(Trainer, overlap_changes_no_bit) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const std::vector<std::pair<const char*, int64_t>> strategies = {
            {"flat", 1}, {"shared", 2}, {"hierarchical", 3}, {"all_gather", 2}};
        for (const auto& [strategy, ramp] : strategies) {
          SCOPED_TRACE(strategy);
          RunConfig serial = small_run(folder.path());
          serial.train.micro_batches = 3;  // of 3, 2 and 2 sequences: ragged, and ranks without any
          serial.exchange.strategy = strategy;
          RunConfig overlapped = serial;
          overlapped.parallel.schedule = "pair";
          overlapped.parallel.ramp = ramp;
          const Outcome expected = outcome_of(world.duplicate("serial"), serial, 4);
          ASSERT_TRUE(std::isfinite(expected.losses.back()));
          EXPECT_EQ(expected, outcome_of(world.duplicate("overlapped"), overlapped, 4));
        }
      },
      {1, 2, 4, 8});
}

// Weight gradients of several micro-batches wait, as many as the memory plan has room for; with tied weights and an MTP module the
// head adds to the gradient of the embedding.
TEST(Trainer, postponed_weight_gradients_change_no_bit) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        for (const char* model : {"plain", "tied", "mtp"}) {
          SCOPED_TRACE(model);
          RunConfig serial = small_run(folder.path());
          serial.train.micro_batches = 6;
          serial.model.tie_word_embeddings = model == std::string_view("tied");
          serial.model.num_nextn_predict_layers = model == std::string_view("mtp") ? 1 : 0;
          const Outcome expected = outcome_of(world.duplicate("serial"), serial, 3);
          const Topology topology = discover_topology(world);
          int lanes_before = 0;
          for (const int64_t postponed : {1, 3}) {
            SCOPED_TRACE(postponed);
            RunConfig overlapped = serial;
            overlapped.parallel.schedule = "pair";
            overlapped.parallel.postponed = postponed;
            EXPECT_EQ(expected, outcome_of(world.duplicate("overlapped"), overlapped, 3));
            const int lanes = plan_memory(overlapped, topology, world.rank()).num_lanes;
            EXPECT_GT(lanes, lanes_before);
            lanes_before = lanes;
          }
        }
      },
      {1, 2, 4});
}

// Gated and not, with heads and latent vectors, weight gradients at once, later and in two lanes; each from less memory than the
// one before.
TEST(Trainer, recomputing_changes_no_bit) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        for (const char* activation : {"silu", "gelu"}) {
          for (const char* schedule : {"1f1b", "pair", "zb1p"}) {
            SCOPED_TRACE(fmt::format("{}, {}", activation, schedule));
            RunConfig kept = small_run(folder.path());
            kept.model.hidden_act = activation;
            const bool is_latent = std::string_view(activation) == "silu";
            if (is_latent) test::make_latent(kept.model);
            kept.parallel.schedule = schedule;
            kept.train.recompute = "none";
            const Outcome expected = outcome_of(world.duplicate("kept"), kept, 3);
            const Topology topology = discover_topology(world);
            std::map<std::string_view, size_t> bytes = {
                {"none", plan_memory(kept, topology, world.rank()).activation_bytes()}};
            for (const char* recompute : {"activations", "mla_up", "attention", "every:2", "layer"}) {
              if (std::string_view(recompute) == "mla_up" && !is_latent) continue;
              SCOPED_TRACE(recompute);
              RunConfig recomputed = kept;
              recomputed.train.recompute = recompute;
              EXPECT_EQ(expected, outcome_of(world.duplicate("recomputed"), recomputed, 3));
              bytes[recompute] = plan_memory(recomputed, topology, world.rank()).activation_bytes();
            }
            if (std::string_view(schedule) != "1f1b") continue;
            EXPECT_LT(bytes["activations"], bytes["none"]);
            if (is_latent) {
              EXPECT_LT(bytes["mla_up"], bytes["activations"]);
            }
            EXPECT_LT(bytes["attention"], bytes[is_latent ? "mla_up" : "activations"]);
            EXPECT_LT(bytes["every:2"], bytes["activations"]);
            EXPECT_LT(bytes["layer"], bytes["every:2"]);
          }
        }
      },
      {1, 2});
}

// Every schedule on every pipeline that fits: the bits of its own serial run, and the losses of one rank.
TEST(Trainer, every_schedule_trains_the_same_model) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.model.num_hidden_layers = 8;
        config.train.batch = 10;
        config.train.micro_batches = 8;  // of 1 and 2 sequences: ranks without any
        RunConfig alone = config;
        alone.out += fmt::format(".alone{}", world.rank());
        const std::vector<double> expected = train_on_threads(1, alone, 3);
        for (const char* schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
          for (int pipeline = 2; pipeline <= std::min(4, world.size()); pipeline *= 2) {
            if (world.size() % pipeline != 0) continue;
            SCOPED_TRACE(fmt::format("{} over {} rows", schedule, pipeline));
            config.parallel.schedule = schedule;
            config.parallel.pipeline = pipeline;
            expect_close(expected, train(world.duplicate("run"), config, 3));
            const Outcome overlapped = outcome_of(world.duplicate("overlapped"), config, 2);
            RunConfig serial = config;
            serial.parallel.overlap = false;
            EXPECT_EQ(overlapped, outcome_of(world.duplicate("serial"), serial, 2));
            RunConfig balanced = config;
            balanced.parallel.stages = "balanced";
            expect_close(expected, train(world.duplicate("balanced"), balanced, 3));
          }
        }
      },
      {2, 4, 8});
}

TEST(Trainer, losses_do_not_depend_on_the_number_of_ranks) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig config = small_run(folder.path());
        RunConfig alone = config;
        alone.out += fmt::format(".alone{}", world.rank());
        const std::vector<double> expected = train_on_threads(1, alone, 30);
        ASSERT_LT(expected[29], 0.8 * expected[0]) << "nothing was learned";
        expect_close(expected, train(world.duplicate("run"), config, 30));

        RunConfig groups = config;
        groups.parallel.expert = world.size() % 2 == 0 ? world.size() / 2 : 1;
        groups.exchange.combine = "slot_order";
        expect_close(expected, train(world.duplicate("groups"), groups, 30));
      },
      {1, 2, 3, 4});
}

TEST(Trainer, the_same_command_twice_gives_the_same_bits) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  const RunConfig config = small_run(folder.path());
  EXPECT_EQ(train_on_threads(3, config, 8), train_on_threads(3, config, 8));
}

TEST(Trainer, a_resumed_run_goes_on_with_the_same_bits) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  const RunConfig config = small_run(folder.path());
  const std::vector<double> whole = train_on_threads(2, config, 20);
  train_on_threads(2, config, 10, /*save=*/true);
  const std::vector<double> rest = train_on_threads(2, resumed(config), 10);
  EXPECT_EQ(std::vector<double>(whole.begin() + 10, whole.end()), rest);
}

TEST(Trainer, any_number_of_ranks_resumes) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  const RunConfig config = small_run(folder.path());
  const std::vector<double> whole = train_on_threads(4, config, 16);
  train_on_threads(4, config, 8, /*save=*/true);
  for (const int num_ranks : {1, 2, 3}) {
    SCOPED_TRACE(num_ranks);
    expect_close({whole.begin() + 8, whole.end()}, train_on_threads(num_ranks, resumed(config), 8));
  }
}

// Data sets by task, whose tokens prefer the experts of that task: the same on any number of ranks and after a resume, and
// not what the same sequences give without their tasks.
TEST(Trainer, a_mixture_by_task_is_a_function_of_the_step) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "code", some_text().substr(0, 2000));
  test::write_file(folder / "math", std::string(700, '1') + some_text().substr(3000, 900));
  RunConfig config = small_run(folder.path());
  config.data.path.clear();
  config.log.every = 100;
  const auto mixture = [&](const char* first, const char* second) {
    return fmt::format("{}:2:{},{}:1:{}", first, (folder / "code").string(), second, (folder / "math").string());
  };
  config.data.mixture = mixture("CODING", "MATH");
  config.model.router.bias.expert_task = {1, 1, 1, 1, 1, 2, 2, 2, 2, 2};
  config.model.router.bias.task = 0.2;
  check(config, 1);
  const std::vector<double> whole = train_on_threads(2, config, 8);
  train_on_threads(2, config, 5, /*save=*/true);
  EXPECT_EQ(std::vector<double>(whole.begin() + 5, whole.end()), train_on_threads(2, resumed(config), 3));
  for (const int num_ranks : {1, 3, 4}) expect_close(whole, train_on_threads(num_ranks, config, 8));
  config.data.mixture = mixture("NONE", "NONE");
  EXPECT_NE(train_on_threads(1, config, 1).front(), whole.front());
  config.data.mixture = mixture("CODING", "MATH");
  config.model.router.bias.expert_task = {};
  EXPECT_NE(test::error_of([&] { check(config, 1); }).find("data.mixture names tasks"), std::string::npos);
}

TEST(Trainer, another_model_does_not_resume) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  RunConfig config = small_run(folder.path());
  train_on_threads(1, config, 1, /*save=*/true);
  config.model.intermediate_size += 8;
  EXPECT_THROW(train_on_threads(1, resumed(config), 1), Error);
}

}  // namespace
}  // namespace cadre::trainer_test
