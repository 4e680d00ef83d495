// SPDX-License-Identifier: Apache-2.0
// Adapters against what transformers and PEFT compute with them (tests/golden/lora, made by `make` there), on any number of
// ranks; what is kept in memory and in checkpoints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/checkpoint/adapter_files.hpp"
#include "runtime/checkpoint/export.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/infer/score.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/score_comparison.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::adapters_test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const fs::path kLora = fs::path(CADRE_TEST_FOLDER) / "golden/lora";

std::vector<double> expected_values(const char* name) {
  const SafetensorsReader expected(kLora / "expected.safetensors");
  const TensorEntry& entry = *expected.find(name);
  return test::values_of(test::ScoreTensor{name, *entry.dtype, entry.shape, expected.bytes(entry)});
}

RunConfig lora_run(const fs::path& folder) {
  RunConfig config;
  config.out = (folder / "run").string();
  config.model = read_model_config(kLora);
  config.data.path = (kLora / "text").string();
  config.data.sequence_length = 24;
  config.data.validation_fraction = 0.0;
  config.train.init = kLora.string();
  config.train.steps = 50;
  config.train.batch = 8;
  config.train.learning_rate = config.train.min_learning_rate = 2e-3;
  config.train.schedule = "constant";
  config.adapter = {.rank = 4, .alpha = 8.0, .weights = "bf16", .init = (kLora / "adapter").string()};
  config.log.every = 1000;
  return config;
}

std::vector<double> losses_of(Communicator world, const RunConfig& config, int steps, bool save = false) {
  Trainer trainer(std::move(world), config);
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) losses.push_back(trainer.step().global.loss);
  if (save) trainer.save();
  return losses;
}

std::vector<double> losses_on(int ranks, const RunConfig& config, int steps, bool save = false) {
  std::vector<double> losses;
  run_local_ranks(ranks, [&](std::unique_ptr<Transport> transport) {
    const bool first = transport->rank() == 0;
    std::vector<double> mine = losses_of(Communicator(std::move(transport), "world"), config, steps, save);
    if (first) losses = std::move(mine);
  });
  return losses;
}

class Adapters : public testing::Test {
 protected:
  Adapters() : config_(lora_run(folder_.path())) {}

  test::TemporaryDirectory folder_;
  RunConfig config_;
};

// Both sum in fp32, in another order; 50 steps let that grow.
TEST_F(Adapters, TrainToTheLossesOfPeft) {
  const std::vector<double> expected = expected_values("losses");
  ASSERT_EQ(expected.size(), 50U);
  EXPECT_LT(expected.back(), 0.8 * expected.front());
  config_.checkpoint.resume = "never";
  std::vector<double> alone;
  for (const int ranks : {1, 2, 3, 4}) {
    const std::vector<double> losses = losses_on(ranks, config_, 50);
    if (alone.empty()) alone = losses;
    for (size_t i = 0; i < losses.size(); ++i) {
      EXPECT_NEAR(losses[i], expected[i], 1e-4) << "step " << i + 1 << ", ranks " << ranks;
      EXPECT_NEAR(losses[i], alone[i], test::kRankTolerance * alone[i]) << "step " << i + 1 << ", ranks " << ranks;
    }
  }
}

TEST_F(Adapters, AreMergedToTheLogitsOfPeft) {
  const std::vector<double> ids = expected_values("tokens");
  ScoreTokens tokens{8, 24, {}};
  for (const double id : ids) tokens.ids.push_back(static_cast<int32_t>(id));
  const std::vector<double> expected = expected_values("logits");
  RunConfig run;
  run.model = config_.model;
  run = score_config(run, tokens);
  const auto logits_of = [&](const fs::path& model, bool merges) {
    std::vector<double> logits;
    run_local_ranks(2, [&](std::unique_ptr<Transport> transport) {
      Communicator world(std::move(transport), "world");
      const bool first = world.rank() == 0;
      const WorkerOptions options = score_options(run, world, {});
      Worker worker(std::move(world), options);
      load_checkpoint(model, worker.store(), nullptr);
      if (merges) StoredAdapter(kLora / "adapter").merge(worker.store());
      for (const ResultTensor& tensor : score(worker, run, tokens, {})) {
        if (!first || tensor.name != "logits") continue;
        const auto* values = tensor.memory.as<float>();
        logits.assign(values, values + tensor.memory.bytes() / sizeof(float));
      }
    });
    return logits;
  };
  export_checkpoint(kLora, folder_ / "merged", ExportFormat::fp32, Fp8Scale::fp32, ExportMtp::keep, kLora / "adapter");
  for (const auto& logits : {logits_of(kLora, true), logits_of(folder_ / "merged", false)}) {
    ASSERT_EQ(logits.size(), expected.size());
    for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 2e-5) << i;
  }
}

// A run in two halves, on other numbers of ranks, is one run; its checkpoint has adapters alone, in one file.
TEST_F(Adapters, ResumeFromAdaptersAlone) {
  config_.adapter.init.clear();
  config_.adapter.dropout = 0.2;
  const std::vector<double> whole = losses_on(1, config_, 6);
  losses_on(4, config_, 3, /*save=*/true);
  const fs::path saved = fs::path(config_.out) / "checkpoints/step_00000003";
  EXPECT_TRUE(is_adapter(saved));
  EXPECT_FALSE(fs::exists(saved / "config.json"));
  const ShardedReader adapters(saved);
  EXPECT_EQ(adapters.weight_map().size(), ShardedReader(kLora / "adapter").weight_map().size());
  EXPECT_EQ(StoredAdapter(saved).base(), kLora.string());
  StoredAdapter(saved).check_base(kLora);
  const std::vector<double> rest = losses_on(2, config_, 3);
  for (size_t i = 0; i < rest.size(); ++i) EXPECT_NEAR(rest[i], whole[i + 3], test::kRankTolerance * whole[i + 3]);
  config_.checkpoint.resume = "never";
  config_.adapter.dropout = 0.0;
  EXPECT_GT(std::abs(losses_on(1, config_, 6).back() - whole.back()), 1e-4);
}

// 2 bytes a weight, 1 in fp8; norms, routers and their biases 4. Nothing else is kept of them, neither gradient nor moments.
TEST_F(Adapters, KeepFixedWeightsInTheirFormat) {
  const auto bytes_in = [&](const char* format) {
    config_.adapter.weights = format;
    const MemoryPlan plan = plan_memory(config_, Topology::uniform(1, 1), 0);
    EXPECT_EQ(plan.lines.front().what, "fixed weights");
    return plan.lines.front().bytes;
  };
  size_t matrices = 0, projections = 0, blocks = 0, others = 0, adapters = 0;
  ShardedReader model(kLora);
  for (const auto& [name, file] : model.weight_map()) {
    const std::vector<int64_t>& shape = model.at(name).entry.shape;
    size_t numel = 1;
    for (const int64_t extent : shape) numel *= static_cast<size_t>(extent);
    const bool is_matrix = shape.size() == 2 && name.find(".gate.") == std::string::npos;
    (is_matrix ? matrices : others) += numel;
    if (!is_projection(name)) continue;
    projections += numel;
    blocks += static_cast<size_t>(((shape[0] + 127) / 128) * ((shape[1] + 127) / 128));
    adapters += static_cast<size_t>(4 * (shape[0] + shape[1]));
  }
  constexpr size_t kAlignment = 64 * 2 * 80;  // at most a cache line for each of some 80 tensors and scales
  EXPECT_NEAR(static_cast<double>(bytes_in("bf16")), static_cast<double>(2 * matrices + 4 * others), kAlignment);
  EXPECT_NEAR(static_cast<double>(bytes_in("fp8")),
              static_cast<double>(2 * (matrices - projections) + projections + 4 * blocks + 4 * others), kAlignment);
  const MemoryPlan plan = plan_memory(config_, Topology::uniform(1, 1), 0);
  for (size_t line : {1, 2})
    EXPECT_NEAR(static_cast<double>(plan.lines[line].bytes), 4.0 * static_cast<double>(adapters), kAlignment);
  EXPECT_NEAR(static_cast<double>(plan.lines[3].bytes), 8.0 * static_cast<double>(adapters), kAlignment);
}

// fp8 as read has the losses of the same values in fp32.
TEST_F(Adapters, TrainOnFp8AsRead) {
  export_checkpoint(kLora, folder_ / "fp8", ExportFormat::fp8, Fp8Scale::fp32);
  config_.train.init = (folder_ / "fp8").string();
  config_.checkpoint.resume = "never";
  config_.adapter.weights = "fp8";
  const std::vector<double> narrow = losses_on(2, config_, 5);
  config_.adapter.weights = "fp32";
  const std::vector<double> wide = losses_on(1, config_, 5);
  for (size_t i = 0; i < wide.size(); ++i) EXPECT_NEAR(narrow[i], wide[i], test::kRankTolerance * wide[i]);
  EXPECT_GT(std::abs(wide.front() - expected_values("losses").front()), 1e-4);
}

// The base of the tests is bf16; merged with adapters its values need more bits.
TEST_F(Adapters, TellOfRoundedWeights) {
  export_checkpoint(kLora, folder_ / "fp32", ExportFormat::fp32, Fp8Scale::fp32);
  export_checkpoint(kLora, folder_ / "fp8", ExportFormat::fp8, Fp8Scale::fp32);
  export_checkpoint(kLora, folder_ / "merged", ExportFormat::fp32, Fp8Scale::fp32, ExportMtp::keep, kLora / "adapter");
  struct Case {
    fs::path base;
    const char* format;
    bool rounds;
  };
  const Case cases[] = {{kLora, "bf16", false},
                        {folder_ / "fp32", "bf16", false},
                        {folder_ / "merged", "bf16", true},
                        {folder_ / "merged", "fp32", false},
                        {folder_ / "fp8", "fp8", false},
                        {folder_ / "fp8", "bf16", true},
                        {kLora, "fp8", true}};
  config_.adapter.init.clear();
  config_.checkpoint.resume = "never";
  for (const Case& c : cases) {
    config_.train.init = c.base.string();
    config_.adapter.weights = c.format;
    testing::internal::CaptureStdout();
    losses_on(2, config_, 0);
    const std::string told = testing::internal::GetCapturedStdout();
    EXPECT_THAT(told, HasSubstr("starts from the weights in " + c.base.string()));
    const std::string line = fmt::format("note: weights of train.init are rounded to {} (adapter.weights)", c.format);
    EXPECT_EQ(told.find(line) != std::string::npos, c.rounds) << c.base << " in " << c.format << ":\n" << told;
  }
}

TEST_F(Adapters, RefuseWhatTheModelHasNot) {
  const auto message = [&] { return test::message_of([&] { check(config_, 1); }); };
  check(config_, 1);
  config_.adapter.targets = "q_proj,o_proj";
  EXPECT_THAT(message(), HasSubstr("this model has no q_proj, allowed: all, or some of q_a_proj,q_b_proj,"));
  config_.adapter.targets = "o_proj,up_proj";
  EXPECT_THAT(message(), HasSubstr("one of gate_proj and up_proj, allowed: both or none"));
  config_.adapter.targets = "all";
  config_.train.init = "";
  EXPECT_THAT(message(), HasSubstr("train.init = \"\", allowed: a directory with adapter.rank > 0"));
  config_ = lora_run(folder_.path());
  config_.adapter.alpha = 4.0;
  EXPECT_THAT(test::message_of([&] { losses_on(1, config_, 1); }),
              HasSubstr("has rank 4 and alpha / rank = 2, the run 4 and 1"));
}

}  // namespace
}  // namespace cadre::adapters_test
