// SPDX-License-Identifier: Apache-2.0
// Progressive training: what each stage trains moves and what it freezes keeps every bit, whatever the step; a run that
// stops in the middle of a stage goes on with the same bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "runtime/checkpoint/manifest.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/shared_directory.hpp"

namespace cadre::train_stages_test {
namespace {

namespace fs = std::filesystem;

TrainConfig config_with(const std::string& stages, int64_t steps = 10) {
  TrainConfig config;
  config.stages = stages;
  config.steps = steps;
  return config;
}

TEST(TrainStages, FollowTheSteps) {
  const std::vector<TrainStage> stages = train_stages(config_with("gate:2, experts:3,all"));
  const Trained expected[] = {Trained::gate,    Trained::gate, Trained::experts, Trained::experts,
                              Trained::experts, Trained::all,  Trained::all};
  for (int64_t step = 0; step < 7; ++step) EXPECT_EQ(trained_at(stages, step), expected[step]) << step;
  EXPECT_EQ(trained_at(stages, 1000), Trained::all);
  // Bias correction counts the steps that trained the part, that one included.
  EXPECT_EQ(updates_of(stages, ModelPart::gate, 1), 2);
  EXPECT_EQ(updates_of(stages, ModelPart::gate, 4), 2);
  EXPECT_EQ(updates_of(stages, ModelPart::gate, 6), 4);
  EXPECT_EQ(updates_of(stages, ModelPart::experts, 6), 5);
  EXPECT_EQ(updates_of(stages, ModelPart::rest, 4), 0);
  EXPECT_EQ(updates_of(stages, ModelPart::rest, 5), 1);
  EXPECT_EQ(updates_of(train_stages(config_with("")), ModelPart::rest, 41), 42);
}

TEST(TrainStages, PartsOfAModel) {
  EXPECT_EQ(part_of_parameter("model.layers.1.mlp.gate.weight"), ModelPart::gate);
  EXPECT_EQ(part_of_parameter("model.layers.1.mlp.gate.e_score_correction_bias"), ModelPart::gate);
  EXPECT_EQ(part_of_parameter("model.layers.1.mlp.experts.3.gate_proj.weight"), ModelPart::experts);
  EXPECT_EQ(part_of_parameter("model.layers.1.mlp.shared_experts.down_proj.weight"), ModelPart::experts);
  EXPECT_EQ(part_of_parameter("model.layers.0.mlp.gate_proj.weight"), ModelPart::rest);  // of a dense layer
  EXPECT_EQ(part_of_parameter("lm_head.weight"), ModelPart::rest);
}

TEST(TrainStages, RefusesWhatItCannotRead) {
  const auto refusal = [](const char* stages) { return test::message_of([&] { train_stages(config_with(stages)); }); };
  test::expect_message(refusal("gate:2,router:3,all"), {"train.stages", "router:3 is not a stage"});
  test::expect_message(refusal("gate,all"), {"gate has no number of steps"});
  test::expect_message(refusal("gate:x,all"), {"gate:x has no number of steps"});
  test::expect_message(refusal("gate:0,all"), {"gate:0 has no number of steps"});
  test::expect_message(refusal("gate:6,experts:4,all"), {"10 steps before the last stage", "train.steps = 10"});
  test::expect_message(refusal("gate:6,all:5"), {"4 steps are left"});
  test::expect_message(refusal(","), {"names no stage"});
}

RunConfig small_run(const fs::path& folder) {
  RunConfig config;
  config.out = (folder / "run").string();
  config.data.path = (folder / "text").string();
  config.data.sequence_length = 16;
  config.model.hidden_size = 16;
  config.model.num_hidden_layers = 2;
  config.model.num_attention_heads = 2;
  config.model.intermediate_size = 24;
  config.model.moe_intermediate_size = 8;
  config.model.n_routed_experts = 4;
  config.model.num_experts_per_tok = 2;
  config.model.n_shared_experts = 1;
  config.model.first_k_dense_replace = 1;
  config.model.scoring_func = ScoreFunction::sigmoid;
  config.model.topk_method = TopkMethod::noaux_tc;
  config.model.norm_topk_prob = true;
  config.model.bias_update_rate = 0.01;
  config.model.max_position_embeddings = 32;
  fill_defaults(config.model);
  config.train.stages = "gate:3,experts:3,all";
  config.train.steps = 9;
  config.train.batch = 4;
  config.train.learning_rate = 3e-3;
  config.checkpoint.resume = "never";
  return config;
}

void write_text(const fs::path& path) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += fmt::format("line {} of some text, then line {}\n", i, i + 1);
  test::write_file(path, text);
}

using Weights = std::map<std::string, std::vector<float>>;

Weights weights_of(Trainer& trainer) {
  Weights weights;
  trainer.worker().gradients().complete_values();
  for (const Parameter* parameter : trainer.worker().store().parameters()) {
    const auto* values = parameter->value.data<float>();
    weights[parameter->name()] = {values, values + parameter->value.numel()};
  }
  return weights;
}

// Whether every element that may move did, and none that may not.
void expect_moved(const Weights& before, const Weights& after, Trained trained) {
  for (const auto& [name, values] : before) {
    const bool moves = trains(trained, part_of_parameter(name));
    EXPECT_EQ(values != after.at(name), moves) << name << " in stage " << name_of(trained);
  }
}

TEST(TrainStages, FrozenParametersKeepEveryBit) {
  test::on_ranks(
      [](Communicator& world) {
        const test::SharedDirectory folder(world);
        if (world.rank() == 0) write_text(folder / "text");
        Request written = world.barrier();
        wait(written);
        Trainer trainer(world.duplicate("run"), small_run(folder.path()));
        for (const Trained trained : {Trained::gate, Trained::experts, Trained::all}) {
          const Weights before = weights_of(trainer);
          for (int step = 0; step < 3; ++step) trainer.step();
          expect_moved(before, weights_of(trainer), trained);
        }
      },
      {1, 2});
}

// The first update of AdamW is the learning rate in size, g / sqrt(g^2), whenever a part begins to learn: bias correction
// that counted the steps of other stages would make it 0.56 of that.
TEST(TrainStages, TheFirstUpdateOfAPartIsAFirstUpdate) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  write_text(folder / "text");
  RunConfig config = small_run(folder.path());
  config.train.schedule = "constant";
  config.train.weight_decay = 0.0;
  test::on_one_rank([&](Communicator world) {
    Trainer trainer(std::move(world), config);
    for (int step = 0; step < 3; ++step) trainer.step();
    const Weights before = weights_of(trainer);
    trainer.step();
    double largest = 0.0;
    for (const auto& [name, values] : weights_of(trainer)) {
      for (size_t i = 0; i < values.size() && part_of_parameter(name) == ModelPart::experts; ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(values[i]) - before.at(name)[i]));
      }
    }
    // Weights of 0.02 and below are stored to 2e-9, epsilon takes less.
    EXPECT_NEAR(largest, config.train.learning_rate, 1e-3 * config.train.learning_rate);
  });
}

// From each step of the first two stages on, the middle of a stage and its borders.
TEST(TrainStages, ResumesInTheMiddleOfAStage) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  write_text(folder / "text");
  RunConfig config = small_run(folder.path());
  const auto run = [&](int steps, bool save) {
    std::pair<std::vector<double>, Weights> result;
    test::on_one_rank([&](Communicator world) {
      Trainer trainer(std::move(world), config);
      for (int i = 0; i < steps; ++i) result.first.push_back(trainer.step().grad_norm);
      if (save) trainer.save();
      result.second = weights_of(trainer);
    });
    return result;
  };
  const auto whole = run(9, false);
  for (int stop = 1; stop < 9; stop += 1) {
    config.checkpoint.resume = "never";
    run(stop, true);
    const Manifest manifest = read_manifest(fs::path(config.out) / "checkpoints" / "latest");
    EXPECT_EQ(manifest.trained, stop <= 3 ? "gate" : stop <= 6 ? "experts" : "all");
    config.checkpoint.resume = "auto";
    const auto rest = run(9 - stop, false);
    EXPECT_EQ(rest.first, std::vector<double>(whole.first.begin() + stop, whole.first.end())) << "after " << stop;
    EXPECT_EQ(rest.second, whole.second) << "after " << stop;
  }
  config.train.stages = "gate:8,all";
  // Updates go on from those that were made, whatever other stages would have made of the steps before.
  test::on_one_rank([&](Communicator world) {
    Trainer trainer(std::move(world), config);
    EXPECT_EQ(trainer.optimizer().updates(), (UpdateCounts{5, 5, 2}));
    trainer.step();
    EXPECT_EQ(trainer.optimizer().updates(), (UpdateCounts{6, 6, 3}));
  });
}

}  // namespace
}  // namespace cadre::train_stages_test
