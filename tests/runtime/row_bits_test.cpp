// SPDX-License-Identifier: Apache-2.0
// With compute.row_bits = independent the log-probabilities of generation, of scores and of a training pass are equal to the
// bit, on any number of ranks: caches, batches and weights that train change nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/infer/generate.hpp"
#include "runtime/infer/sampling.hpp"
#include "runtime/infer/score.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::row_bits_test {
namespace {

struct ExactCase {
  const char* name;
  const char* precision;
  bool is_latent;
};
constexpr ExactCase kExactCases[] = {
    {"heads", "fp32", false}, {"latent", "fp32", true}, {"heads in bf16", "bf16", false}};

constexpr int64_t kPromptLength = 21;  // more than a few queries, which are attended to one by one
constexpr int64_t kNewTokens = 14;
constexpr int kTexts = 5;

RunConfig exact_config(const ExactCase& of) {
  RunConfig config = test::small_run("nowhere");
  ModelConfig& model = config.model;
  if (of.is_latent) {
    model.model_type = "deepseek_v3";
    model.q_lora_rank = 24;
    model.kv_lora_rank = 20;
    model.qk_nope_head_dim = 12;
    model.qk_rope_head_dim = 6;
    model.v_head_dim = 10;
  }
  model.hidden_size = 96;
  model.num_attention_heads = 4;
  model.num_key_value_heads = of.is_latent ? 4 : 2;
  model.head_dim = of.is_latent ? model.head_dim : 24;
  model.intermediate_size = 200;
  model.moe_intermediate_size = 72;
  model.initializer_range = 0.1;
  fill_defaults(model);
  config.train = TrainConfig();
  config.exchange.combine = "slot_order";
  config.compute.precision = of.precision;
  config.compute.row_bits = "independent";
  return config;
}

struct GeneratedTexts {
  std::vector<std::vector<int32_t>> tokens;  // with the prompt
  std::vector<std::vector<double>> logs;     // of the new ones
  bool operator==(const GeneratedTexts&) const = default;
};

GeneratedTexts generate_exactly(Communicator world, const RunConfig& config, int64_t batch) {
  Worker worker(std::move(world), {.model = config.model,
                                   .parallel = config.parallel,
                                   .exchange = config.exchange,
                                   .compute = config.compute,
                                   .with_grad = false});
  worker.store().initialise(11);
  std::vector<TextRequest> requests;
  GeneratedTexts made;
  for (int text = 0; text < kTexts; ++text) {
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < kPromptLength; ++i) prompt.push_back(static_cast<int32_t>((text * 37 + i * i * 5) % 256));
    made.tokens.push_back(prompt);
    requests.push_back({prompt, {.temperature = 0.9, .seed = static_cast<uint64_t>(text)}});
  }
  made.logs = generate(worker, requests,
                       {.max_new = kNewTokens,
                        .batch = batch,
                        .end_tokens = std::vector<int32_t>(),
                        .emits_on_all_ranks = true,
                        .log_probabilities = true},
                       [&](size_t text, std::optional<int32_t> token) {
                         if (token) made.tokens.at(text).push_back(*token);
                       })
                  .log_probabilities;
  return made;
}

// Of the new tokens of the texts, on rank 0. With gradients the pass is that of a training step.
std::vector<std::vector<double>> score_exactly(Communicator world, RunConfig config, const GeneratedTexts& texts,
                                               bool gradients, int64_t micro_batches) {
  ScoreTokens tokens = {kTexts, kPromptLength + kNewTokens, {}};
  for (const auto& text : texts.tokens) tokens.ids.insert(tokens.ids.end(), text.begin(), text.end());
  const ScoringOptions options = {.gradients = gradients};
  config = score_config(config, tokens);
  config.train.micro_batches = micro_batches;
  const WorkerOptions worker_options = score_options(config, world, options);
  Worker worker(std::move(world), worker_options);
  worker.store().initialise(11);
  const std::vector<ResultTensor> results = score(worker, config, tokens, options);
  std::vector<std::vector<double>> logs;
  if (worker.world().rank() != 0) return logs;
  const auto logits = std::ranges::find(results, "logits", &ResultTensor::name);
  const auto vocabulary = static_cast<size_t>(logits->shape[2]);
  for (int64_t text = 0; text < kTexts; ++text) {
    logs.emplace_back();
    for (int64_t t = kPromptLength; t < tokens.length; ++t) {
      const float* row = logits->memory.as<float>() + static_cast<size_t>(text * tokens.length + t - 1) * vocabulary;
      logs.back().push_back(
          log_probability({row, vocabulary}, texts.tokens[static_cast<size_t>(text)][static_cast<size_t>(t)]));
    }
  }
  return logs;
}

TEST(RowBits, generation_scores_and_training_agree_to_the_bit) {
  for (const ExactCase& of : kExactCases) {
    SCOPED_TRACE(of.name);
    const RunConfig config = exact_config(of);
    GeneratedTexts alone;
    test::on_one_rank([&](Communicator world) { alone = generate_exactly(std::move(world), config, 1); });
    ASSERT_EQ(alone.logs.size(), static_cast<size_t>(kTexts));
    for (const auto& logs : alone.logs) ASSERT_EQ(logs.size(), static_cast<size_t>(kNewTokens));
    test::on_ranks(
        [&](Communicator& world) {
          const GeneratedTexts texts = generate_exactly(world.duplicate("generate"), config, 4);
          EXPECT_EQ(alone, texts) << "one text at a time on one rank";
          const auto scored = score_exactly(world.duplicate("score"), config, texts, false, 1);
          const auto trained = score_exactly(world.duplicate("train"), config, texts, true, 2);
          if (world.rank() != 0) return;
          EXPECT_EQ(texts.logs, scored);
          EXPECT_EQ(texts.logs, trained);
        },
        {1, 2, 4});
  }
}

TEST(RowBits, sums_at_experts_are_refused) {
  RunConfig config = test::small_run("folder");
  config.compute.row_bits = "independent";
  test::expect_message(test::message_of([&] { check(config, 1); }),
                       {"compute.row_bits = independent with exchange.combine = partial, allowed: slot_order"});
}

}  // namespace
}  // namespace cadre::row_bits_test
