// SPDX-License-Identifier: Apache-2.0
// Whole training runs that take a second or so, and what is known of their losses.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/transport/local.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/shared_directory.hpp"

namespace cadre::test {

// fp32 sums in another order: relative 1e-7 a sum, which some 30 steps of training let grow. The bound is the one that
// users are promised.
inline constexpr double kRankTolerance = 1e-5;

// Text with something to learn: words drawn from a few, so that the loss falls.
inline std::string some_text() {
  const char* words[] = {"the ", "expert ", "token ", "rank ", "moves ", "to ", "and ", "back ", "again.\n"};
  const Random random(3, "text", 0);
  std::string text;
  for (uint64_t i = 0; text.size() < 20000; ++i) text += words[random.below(9, i)];
  return text;
}

inline RunConfig small_run(const std::filesystem::path& folder) {
  RunConfig config;
  config.out = (folder / "run").string();
  config.data.path = (folder / "text").string();
  config.data.sequence_length = 24;
  config.data.validation_fraction = 0.1;
  config.model.hidden_size = 32;
  config.model.num_hidden_layers = 3;
  config.model.num_attention_heads = 2;
  config.model.intermediate_size = 48;
  config.model.moe_intermediate_size = 16;
  config.model.n_routed_experts = 10;
  config.model.num_experts_per_tok = 2;
  config.model.n_shared_experts = 1;
  config.model.first_k_dense_replace = 1;
  config.model.scoring_func = ScoreFunction::sigmoid;
  config.model.topk_method = TopkMethod::noaux_tc;
  config.model.norm_topk_prob = true;
  config.model.aux_loss_alpha = 0.01;
  config.model.max_position_embeddings = 64;
  fill_defaults(config.model);
  config.train.steps = 30;
  config.train.batch = 7;
  config.train.micro_batches = 2;
  config.train.learning_rate = 3e-3;
  config.train.eval_batches = 2;
  config.checkpoint.resume = "never";
  config.log.every = 0;
  return config;
}

// Latent attention in place of heads.
inline void make_latent(ModelConfig& model) {
  model.model_type = "deepseek_v3";
  model.q_lora_rank = 12;
  model.kv_lora_rank = 10;
  model.qk_nope_head_dim = 8;
  model.qk_rope_head_dim = 6;
  model.v_head_dim = 9;
  fill_defaults(model);
}

// A folder for a run, with a text to train on.
class RunFolder {
 public:
  explicit RunFolder(Communicator& world) : folder_(world) {
    if (world.rank() == 0) write_file(folder_ / "text", some_text());
    Request written = world.barrier();
    wait(written);
  }

  std::filesystem::path path() const { return folder_.path(); }

 private:
  SharedDirectory folder_;
};

// Takes `steps` steps; what rank 0 saw, the validation loss last.
inline std::vector<double> train(Communicator world, const RunConfig& config, int steps, bool save = false) {
  Trainer trainer(std::move(world), config);
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) losses.push_back(trainer.step().global.loss);
  losses.push_back(trainer.evaluate());
  if (save) trainer.save();
  return losses;
}

inline std::vector<double> train_on_threads(int num_ranks, const RunConfig& config, int steps, bool save = false) {
  std::vector<double> losses;
  run_local_ranks(num_ranks, [&](std::unique_ptr<Transport> transport) {
    const bool first = transport->rank() == 0;
    std::vector<double> mine = train(Communicator(std::move(transport), "world"), config, steps, save);
    if (first) losses = std::move(mine);
  });
  return losses;
}

inline RunConfig resumed(RunConfig config) {
  config.checkpoint.resume = "auto";
  return config;
}

// The bits of all weights after some steps; the losses of the steps before them.
struct Outcome {
  std::vector<double> losses;
  std::vector<std::vector<float>> weights;
  bool operator==(const Outcome&) const = default;
};

inline Outcome outcome_of(Communicator world, const RunConfig& config, int steps) {
  Outcome outcome;
  Trainer trainer(std::move(world), config);
  for (int i = 0; i < steps; ++i) outcome.losses.push_back(trainer.step().global.loss);
  trainer.worker().gradients().complete_values();
  for (const Parameter* parameter : trainer.worker().store().parameters()) {
    const auto* values = parameter->value.data<float>();
    outcome.weights.emplace_back(values, values + parameter->value.numel());
  }
  return outcome;
}

inline void expect_close(const std::vector<double>& expected, const std::vector<double>& actual) {
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], kRankTolerance * expected[i]) << "step " << i + 1;
  }
}

}  // namespace cadre::test
