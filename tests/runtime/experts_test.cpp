// SPDX-License-Identifier: Apache-2.0
// Growth that changes no output, for each way of weighing; a merge that undoes it to the bit; training that goes on from a
// grown model on any number of ranks; what a merge chooses, how it weighs, and what it says was lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "comm/transport/local.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/experts/merge.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::experts_test {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

// fp32 sums in another order: a few roundings of 6e-8 a layer, of outputs of order one.
constexpr double kRounding = 2e-6;

RunConfig small_run(const fs::path& folder) {
  RunConfig config;
  config.out = (folder / "run").string();
  config.data.path = (folder / "text").string();
  config.data.sequence_length = 16;
  config.model.hidden_size = 16;
  config.model.num_hidden_layers = 3;
  config.model.num_attention_heads = 2;
  config.model.initializer_range = 0.3;
  config.model.intermediate_size = 24;
  config.model.moe_intermediate_size = 8;
  config.model.n_routed_experts = 4;
  config.model.num_experts_per_tok = 2;
  config.model.n_shared_experts = 1;
  config.model.first_k_dense_replace = 1;
  config.model.topk_method = TopkMethod::noaux_tc;
  config.model.max_position_embeddings = 32;
  fill_defaults(config.model);
  config.train.batch = 4;
  config.train.steps = 10;
  config.train.learning_rate = 3e-3;
  return config;
}

class ExpertsTest : public testing::Test {
 protected:
  ExpertsTest() {
    std::string text;
    for (int i = 0; i < 200; ++i) text += fmt::format("line {} of some text, then line {}\n", i, i + 1);
    test::write_file(folder_ / "text", text);
  }

  // A model with random values and moments, and a selection bias that decides.
  template <class Body>
  void with_model(const RunConfig& config, Body&& body) {
    test::on_one_rank([&](Communicator world) {
      StoredModel model(std::move(world), config);
      model.worker().store().initialise(11);
      uint64_t id = 0;
      for (const NamedTensor& tensor : model.moments()) test::fill_random(tensor.memory, ++id);
      for (const NamedTensor& tensor : model.values()) {
        if (tensor.name.ends_with("e_score_correction_bias")) test::fill_random(tensor.memory, ++id, 0.1);
      }
      body(model);
    });
  }

  static std::vector<LayerSurvey> surveyed(StoredModel& model) {
    const RunConfig& config = model.config();
    const BatchReader reader(open_dataset(config.data, config.model).train, config.data.sequence_length,
                             config.train.batch, 1);
    return survey_experts(model, reader, 4);
  }

  test::TemporaryDirectory folder_;
};

std::map<std::string, std::vector<float>> bits_of(StoredModel& model) {
  std::map<std::string, std::vector<float>> bits;
  for (const auto& tensors : {model.values(), model.moments()}) {
    for (const auto& [name, memory] : tensors) {
      bits[name] = {memory.data<float>(), memory.data<float>() + memory.numel()};
    }
  }
  return bits;
}

// What comes to the second mixture tells whether the first one computes the same; loads tell that balance is kept.
void expect_same_model(const std::vector<LayerSurvey>& before, const std::vector<LayerSurvey>& after) {
  ASSERT_EQ(before.size(), 2U);
  for (size_t layer = 0; layer < before.size(); ++layer) {
    for (size_t i = 0; i < before[layer].rows.size(); ++i) {
      ASSERT_NEAR(before[layer].rows[i], after[layer].rows[i], kRounding) << "layer " << layer << " element " << i;
    }
    for (int e = 0; e < before[layer].num_experts(); ++e) {
      EXPECT_EQ(before[layer].load[e], after[layer].load[2 * e]);
      EXPECT_EQ(before[layer].load[e], after[layer].load[2 * e + 1]);
    }
  }
}

TEST_F(ExpertsTest, TwiceTheExpertsAndTwiceTheTopKIsTheSameModel) {
  for (const char* scoring : {"softmax", "sigmoid"}) {
    for (const auto& [renormalised, top_k] : {std::pair(false, 2), {true, 2}, {true, 1}}) {
      SCOPED_TRACE(fmt::format("{} renormalised {} top-{}", scoring, renormalised, top_k));
      RunConfig config = small_run(folder_.path());
      set_key(config.model, "scoring_func", scoring);
      config.model.norm_topk_prob = renormalised;
      config.model.num_experts_per_tok = top_k;
      config.model.routed_scaling_factor = 1.5;
      with_model(config, [&](StoredModel& model) {
        const GrowOptions options = {.noise = 0.0};
        test::on_one_rank([&](Communicator world) {
          StoredModel grown(std::move(world), grown_config(config, options));
          grow_experts(model, grown, options);
          EXPECT_EQ(grown.config().model.n_routed_experts, 8);
          EXPECT_EQ(grown.config().model.num_experts_per_tok, 2 * top_k);
          expect_same_model(surveyed(model), surveyed(grown));
        });
      });
    }
  }
}

TEST_F(ExpertsTest, KeysThatNameExpertsFollowThemOrAreRefused) {
  RunConfig config = small_run(folder_.path());
  config.model.router.bias.expert_task = {0, 1, -1, 2};
  EXPECT_EQ(key_text(grown_config(config, {}).model, "expert_tasks"), "0,0,1,1,-1,-1,2,2");
  test::expect_message(test::message_of([&] { merged_config(config, {}); }), {"model.expert_tasks", "0,1,-1,2"});
  config.model.router.bias.expert_task.clear();
  config.model.router.dead_experts = {3};
  test::expect_message(test::message_of([&] { grown_config(config, {}); }), {"model.dead_experts = 3", "ids change"});
  test::expect_message(test::message_of([&] { merged_config(config, {}); }), {"model.dead_experts = 3"});
}

TEST_F(ExpertsTest, NoiseIsOfTheSecondOfTwoAndOfTheStatedScale) {
  RunConfig config = small_run(folder_.path());
  config.model.scoring_func = ScoreFunction::sigmoid;
  const GrowOptions options = {.noise = 0.05, .seed = 3};
  with_model(config, [&](StoredModel& model) {
    test::on_one_rank([&](Communicator world) {
      StoredModel grown(std::move(world), grown_config(config, options));
      grow_experts(model, grown, options);
      const auto before = bits_of(model);
      const auto after = bits_of(grown);
      const std::string prefix = "model.layers.2.mlp.";
      const std::string weight = ".down_proj.weight";
      for (int e = 0; e < 4; ++e) {
        const auto& old = before.at(fmt::format("{}experts.{}{}", prefix, e, weight));
        EXPECT_EQ(after.at(fmt::format("{}experts.{}{}", prefix, 2 * e, weight)), old);
        const auto& copy = after.at(fmt::format("{}experts.{}{}", prefix, 2 * e + 1, weight));
        double squares = 0.0;
        double changes = 0.0;
        for (size_t i = 0; i < old.size(); ++i) {
          squares += static_cast<double>(old[i]) * old[i];
          changes += std::pow(static_cast<double>(copy[i]) - old[i], 2);
        }
        // 128 numbers: their root mean square is within 4 / sqrt(256) = 25 % of the deviation.
        EXPECT_NEAR(std::sqrt(changes / squares), 0.05, 0.0125);
        // Moments are those of the expert, for both.
        const auto& moment = before.at(fmt::format("{}experts.{}{}.exp_avg", prefix, e, weight));
        EXPECT_EQ(after.at(fmt::format("{}experts.{}{}.exp_avg", prefix, 2 * e, weight)), moment);
        EXPECT_EQ(after.at(fmt::format("{}experts.{}{}.exp_avg", prefix, 2 * e + 1, weight)), moment);
      }
      const auto& gate = before.at(prefix + "gate.weight");
      const auto& grown_gate = after.at(prefix + "gate.weight");
      for (size_t i = 0; i < grown_gate.size(); ++i) EXPECT_EQ(grown_gate[i], gate[i / 32 * 16 + i % 16]) << i;
      EXPECT_NE(after.at(prefix + "experts.1" + weight), after.at(prefix + "experts.3" + weight));
    });
  });
}

// Equal experts have equal outputs, and any mean of equal numbers is that number.
TEST_F(ExpertsTest, AMergeUndoesGrowthToTheBit) {
  RunConfig config = small_run(folder_.path());
  config.model.scoring_func = ScoreFunction::sigmoid;
  config.model.norm_topk_prob = true;
  const GrowOptions options = {.noise = 0.0};
  const RunConfig grown_run = grown_config(config, options);
  with_model(config, [&](StoredModel& model) {
    test::on_one_rank([&](Communicator one) {
      StoredModel grown(std::move(one), grown_run);
      grow_experts(model, grown, options);
      test::on_one_rank([&](Communicator other) {
        StoredModel merged(std::move(other), merged_config(grown_run, {.top_k = 2}));
        for (const LayerLoss& loss : merge_experts(grown, merged, surveyed(grown))) {
          EXPECT_EQ(loss.output_change, 0.0);
          EXPECT_EQ(loss.least_similarity, 1.0);
        }
        EXPECT_EQ(bits_of(merged), bits_of(model));
        EXPECT_EQ(merged.config().model, config.model);
      });
    });
  });
}

TEST_F(ExpertsTest, AMergeOfUnlikeExpertsSaysWhatWasLost) {
  RunConfig config = small_run(folder_.path());
  with_model(config, [&](StoredModel& model) {
    const std::vector<LayerSurvey> surveys = surveyed(model);
    test::on_one_rank([&](Communicator world) {
      StoredModel merged(std::move(world), merged_config(config, {.experts = 2}));
      for (const LayerLoss& loss : merge_experts(model, merged, surveys)) {
        EXPECT_EQ(loss.sums.size(), 2U);
        EXPECT_GT(loss.output_change, 0.05);
        EXPECT_LT(loss.least_similarity, 0.9);
      }
    });
  });
}

LayerSurvey survey_with(std::vector<int64_t> load, std::vector<double> similarity) {
  LayerSurvey survey;
  survey.load = std::move(load);
  survey.similarity = std::move(similarity);
  return survey;
}

TEST(ChooseMerges, TakesTheMostSimilarOnAverage) {
  // 1 and 3 are alike, then 0 and 2 more than either with them.
  const LayerSurvey survey = survey_with({5, 3, 0, 1}, {1, .1, .6, .2, .1, 1, .5, .9, .6, .5, 1, .3, .2, .9, .3, 1});
  EXPECT_THAT(choose_merges(survey, 3, 1),
              ElementsAre(ExpertSum{{{0, 5}}}, ExpertSum{{{1, 3}, {3, 1}}}, ExpertSum{{{2, 1}}}));
  // Nobody used expert 2, so that it adds nothing to expert 0.
  EXPECT_THAT(choose_merges(survey, 2, 1), ElementsAre(ExpertSum{{{0, 5}}}, ExpertSum{{{1, 3}, {3, 1}}}));
  // In groups {0, 1} and {2, 3} each merges for itself.
  EXPECT_THAT(choose_merges(survey, 2, 2), ElementsAre(ExpertSum{{{0, 5}, {1, 3}}}, ExpertSum{{{3, 1}}}));
}

TEST(ChooseMerges, TakesTheFirstOfEquals) {
  const LayerSurvey survey = survey_with({0, 0, 7}, std::vector<double>(9, 1.0));
  EXPECT_THAT(choose_merges(survey, 2, 1), ElementsAre(ExpertSum{{{0, 1}, {1, 1}}}, ExpertSum{{{2, 7}}}));
}

TEST(SumExperts, WeighsByLoadAndNamesWhatItCannotFind) {
  Arena arena;
  const auto tensor = [&](const char* name, std::initializer_list<int64_t> shape, const std::vector<double>& values) {
    return NamedTensor{name, test::tensor_of(arena, DType::f32, shape, values)};
  };
  const std::vector<NamedTensor> from = {tensor("model.layers.4.mlp.experts.0.w", {2}, {1, 2}),
                                         tensor("model.layers.4.mlp.experts.1.w", {2}, {5, -2}),
                                         tensor("model.layers.4.mlp.gate.weight", {2, 3}, {1, 2, 3, 5, 6, 7}),
                                         tensor("model.layers.4.mlp.gate.history", {3, 2}, {1, 5, 2, 6, 3, 7}),
                                         tensor("model.layers.4.mlp.gate.hidden", {3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9}),
                                         tensor("lm_head.weight", {1}, {9})};
  const std::vector<NamedTensor> to = {tensor("model.layers.4.mlp.experts.0.w", {2}, {0, 0}),
                                       tensor("model.layers.4.mlp.gate.weight", {1, 3}, {0, 0, 0}),
                                       tensor("model.layers.4.mlp.gate.history", {3, 1}, {0, 0, 0}),
                                       tensor("model.layers.4.mlp.gate.hidden", {3, 3}, std::vector<double>(9, 0)),
                                       tensor("lm_head.weight", {1}, {0})};
  sum_experts(from, to, {{4, {ExpertSum{{{0, 3}, {1, 1}}}}}}, 2);
  EXPECT_THAT(test::values_of(to[0].memory), ElementsAre(2, 1));
  EXPECT_THAT(test::values_of(to[1].memory), ElementsAre(2, 3, 4));
  EXPECT_THAT(test::values_of(to[2].memory), ElementsAre(2, 3, 4));
  EXPECT_THAT(test::values_of(to[3].memory), ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_THAT(test::values_of(to[4].memory), ElementsAre(9));
  const std::vector<NamedTensor> more = {tensor("model.norm.weight", {1}, {0})};
  test::expect_message(test::message_of([&] { sum_experts(from, more, {}, 2); }), {"no tensor model.norm.weight"});
}

std::vector<double> train(int num_ranks, const RunConfig& config, int steps, bool save) {
  std::vector<double> losses;
  run_local_ranks(num_ranks, [&](std::unique_ptr<Transport> transport) {
    const bool first = transport->rank() == 0;
    Trainer trainer(Communicator(std::move(transport), "world"), config);
    for (int i = 0; i < steps; ++i) {
      const double loss = trainer.step().global.loss;
      if (first) losses.push_back(loss);
    }
    if (save) trainer.save();
  });
  return losses;
}

// The first step after growth has the loss that the run would have had; afterwards copies learn by themselves.
TEST_F(ExpertsTest, TrainingGoesOnFromAGrownModelOnAnyNumberOfRanks) {
  RunConfig config = small_run(folder_.path());
  config.model.scoring_func = ScoreFunction::sigmoid;
  config.model.norm_topk_prob = true;
  const std::vector<double> whole = train(1, config, 5, false);
  config.checkpoint.resume = "never";
  train(2, config, 4, true);
  const fs::path checkpoint = fs::path(config.out) / "checkpoints" / "latest";
  const GrowOptions options = {.noise = 0.0};
  for (const int num_ranks : {1, 2, 3}) {
    SCOPED_TRACE(num_ranks);
    const fs::path out = folder_ / fmt::format("grown{}", num_ranks);
    test::on_one_rank([&](Communicator one) {
      StoredModel model(std::move(one), config);
      model.load(checkpoint);
      test::on_one_rank([&](Communicator other) {
        StoredModel grown(std::move(other), grown_config(config, options));
        grow_experts(model, grown, options);
        grown.save(out, model.manifest());
        EXPECT_THROW(grown.save(out, model.manifest()), Error);
      });
    });
    const RunConfig resumed = load_run_config((out / "run.toml").string(), {});
    const std::vector<double> losses = train(num_ranks, resumed, 2, false);
    EXPECT_NEAR(losses[0], whole[4], 1e-5 * whole[4]);  // what users are promised of other ranks
    EXPECT_TRUE(std::isfinite(losses[1]));
  }
}

}  // namespace
}  // namespace cadre::experts_test
