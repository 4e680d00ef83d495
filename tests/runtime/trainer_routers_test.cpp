// SPDX-License-Identifier: Apache-2.0
// Whole runs with every kind of router: the same on any number of ranks, with MTP modules and after a resume.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "comm/transport/local.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::trainer_routers_test {
namespace {

using test::expect_close;
using test::resumed;
using test::RunFolder;
using test::small_run;
using test::some_text;
using test::train;
using test::train_on_threads;

// Each of them looks at tokens of other ranks, draws numbers for tokens, or learns from what all ranks counted.
std::vector<RunConfig> router_runs(const std::filesystem::path& folder) {
  std::vector<RunConfig> runs;
  const auto add = [&](const std::function<void(ModelConfig&)>& change) {
    RunConfig config = small_run(folder);
    change(config.model);
    fill_defaults(config.model);
    runs.push_back(config);
  };
  add([](ModelConfig& model) {
    model.scoring_func = ScoreFunction::softmax;
    model.router.scorer.noise = true;
    model.router.scorer.jitter = 0.05;
    model.router.bias.history = true;
    model.router.capacity.factor = 1.0;
    model.router.capacity.kind = CapacityKind::dynamic;
    model.router.losses.importance = 0.1;
    model.router.losses.load = 0.1;
    model.router.losses.z = 1e-3;
  });
  add([](ModelConfig& model) {
    model.router.select.rule = SelectRule::expert_choice;
    model.norm_position = NormPosition::post;
    model.ffn_highway = true;
    model.n_shared_experts = 2;
    model.shared_expert_mean = true;
  });
  add([](ModelConfig& model) {
    model.router.bias.expert_task = {0, 1, 2, 3, 1, 0, 3, 4, 0, 1};
    model.router.bias.task = 0.2;
    model.router.bias.history = true;
    model.router.select.task_top_k = {1, 2, 2, 1, 2};
  });
  runs.back().task.recognise = true;
  runs.back().task.reasoning = "rank,moves";
  runs.back().task.coding = "expert";
  add([](ModelConfig& model) {
    model.router.select.rule = SelectRule::sinkhorn;
    model.router.losses.by_sequence = true;
  });
  add([](ModelConfig& model) {
    model.scoring_func = ScoreFunction::softmax;
    model.n_group = 5;
    model.topk_group = 2;
    model.router.select.rule = SelectRule::hierarchical;
    model.router.scorer.two_level = true;
    model.router.scorer.hidden_sizes = {12};
    model.initializer_range = 0.1;  // two small layers would leave scores that only rounding tells apart
    model.router.capacity.factor = 0.9;
    model.router.capacity.kind = CapacityKind::learned;
    model.router.capacity.drop = DropPolicy::position;
  });
  add([](ModelConfig& model) {
    model.n_routed_experts = 12;
    model.num_experts_per_tok = 6;
    model.expert_kinds = ExpertKinds::projections;
    model.initializer_range = 0.2;  // products of three small weights would learn nothing in a few steps
  });
  runs.back().exchange.strategy = "shared";
  add([](ModelConfig& model) {
    model.num_experts_per_tok = 3;
    model.router.bias.expert_task = {0, 1, 2, 3, 1, 0, 3, 4, 0, 1};
    model.router.bias.task = 0.1;
    model.router.bias.history = true;
    model.router.bias.weighs = true;
    model.router.losses.diversity = 0.1;
    model.router.capacity.tokens = 40;
    model.router.losses.importance = 1e-4;
    model.router.losses.importance_form = {VarianceForm::Kind::raw, Variance::population};
    model.router.losses.device_variance = 0.1;
    model.router.losses.device_form = {VarianceForm::Kind::counts, Variance::population};
    model.router.losses.devices = 3;
    model.router.losses.layout = DeviceLayout::cyclic;
  });
  runs.back().exchange.strategy = "hierarchical";
  return runs;
}

TEST(TrainerRouters, every_router_trains_the_same_on_any_number_of_ranks) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        for (const RunConfig& config : router_runs(folder.path())) {
          SCOPED_TRACE(key_text(config.model, "router"));
          RunConfig alone = config;
          alone.out += fmt::format(".alone{}", world.rank());
          const std::vector<double> expected = train_on_threads(1, alone, 4);
          ASSERT_LT(expected[3], expected[0]) << "nothing was learned";
          expect_close(expected, train(world.duplicate("run"), config, 4));
        }
      },
      {1, 2, 3, 4});
}

// Loss, balance loss and loss of the MTP modules of some steps.
std::vector<double> losses_of(Communicator world, const RunConfig& config, int steps) {
  Trainer trainer(std::move(world), config);
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) {
    const GlobalStep step = trainer.step().global;
    for (const double loss : {step.loss, step.balance_loss, step.mtp_loss}) losses.push_back(loss);
  }
  return losses;
}

// Noise, jitter, conditions, tasks and sequences of a router look at single tokens, of which an MTP module has a selection.
// Sequences are shared out unevenly, and a rank may have none.
TEST(TrainerRouters, mtp_modules_look_at_the_tokens_of_their_rows) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = small_run(folder.path());
        config.model.num_nextn_predict_layers = 2;
        config.model.num_hidden_layers = 4;
        config.model.aux_loss_alpha = 0.5;
        config.model.initializer_range = 0.2;  // scores that differ, and with them the losses
        config.model.router.losses.by_sequence = true;
        config.model.router.scorer.noise = true;
        config.model.router.scorer.jitter = 0.3;
        set_key(config.model, "expert_conditions", "0:position<4,3:task=1,5:position>=20");
        config.model.router.bias.expert_task = {0, 1, 2, 3, 1, 0, 3, 4, 0, 1};
        config.model.router.bias.task = 0.2;
        config.model.router.select.task_top_k = {1, 2, 2, 1, 2};
        config.task.recognise = true;
        config.task.reasoning = "rank,moves";
        config.task.coding = "expert";
        RunConfig alone = config;
        alone.train.micro_batches = 1;
        alone.out += fmt::format(".alone{}", world.rank());
        std::vector<double> expected;
        test::on_one_rank([&](Communicator one) { expected = losses_of(std::move(one), alone, 3); });
        for (const int64_t micro_batches : {1, 2, 5}) {
          for (const int64_t pipeline : {1, 2}) {
            if (world.size() % pipeline != 0 || (pipeline > 1 && micro_batches == 1)) continue;
            SCOPED_TRACE(fmt::format("{} micro-batches, pipeline {}", micro_batches, pipeline));
            RunConfig run = config;
            run.train.micro_batches = micro_batches;
            run.parallel.pipeline = pipeline;
            if (pipeline > 1) run.parallel.schedule = "1f1b";
            expect_close(expected, losses_of(world.duplicate("run"), run, 3));
          }
        }
      },
      {1, 2, 4});
}

TEST(TrainerRouters, what_routers_learned_is_in_the_checkpoint) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  for (const RunConfig& config : router_runs(folder.path())) {
    if (config.model.router.capacity.factor == 0.0) continue;  // nothing is learned between steps
    SCOPED_TRACE(key_text(config.model, "router"));
    const std::vector<double> whole = train_on_threads(2, config, 5);
    train_on_threads(2, config, 3, /*save=*/true);
    EXPECT_EQ(std::vector<double>(whole.begin() + 3, whole.end()), train_on_threads(2, resumed(config), 2));
    std::filesystem::remove_all(config.out);
  }
}

}  // namespace
}  // namespace cadre::trainer_routers_test
