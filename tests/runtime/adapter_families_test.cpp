// SPDX-License-Identifier: Apache-2.0
// Adapters on each family, under the names of its files, against what transformers and PEFT compute
// with them (tests/golden/lora/families, made by `make` there).
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>

#include "runtime/checkpoint/adapter_files.hpp"
#include "runtime/checkpoint/export.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/infer/score.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/score_comparison.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::adapter_families_test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

const fs::path kFolder = fs::path(CADRE_TEST_FOLDER) / "golden/lora/families";
const fs::path kModels = fs::path(CADRE_TEST_FOLDER) / "golden/huggingface";

std::vector<double> values_in(const fs::path& file, const char* name) {
  const SafetensorsReader reader(file);
  const TensorEntry& entry = *reader.find(name);
  return test::values_of(test::ScoreTensor{name, *entry.dtype, entry.shape, reader.bytes(entry)});
}

class AdapterFamilies : public testing::TestWithParam<std::string> {
 protected:
  AdapterFamilies() {
    run_.out = (folder_ / "run").string();
    run_.model = read_model_config(model_);
    run_.data.path = (kFolder / "tokens.bin").string();
    run_.data.sequence_length = 16;
    run_.data.validation_fraction = 0.0;
    run_.train.init = model_.string();
    run_.train.steps = 10;
    run_.train.batch = 6;
    run_.train.learning_rate = run_.train.min_learning_rate = 1e-2;
    run_.train.schedule = "constant";
    run_.adapter = {.rank = 2, .alpha = 4.0, .weights = "fp32", .init = adapter_.string()};
    run_.log.every = 1000;
    run_.checkpoint.resume = "never";
  }

  std::vector<double> losses_on(int ranks, bool save) const {
    std::vector<double> losses;
    run_local_ranks(ranks, [&](std::unique_ptr<Transport> transport) {
      const bool first = transport->rank() == 0;
      Trainer trainer(Communicator(std::move(transport), "world"), run_);
      for (int i = 0; i < 10; ++i) {
        const double loss = trainer.step().global.loss;
        if (first) losses.push_back(loss);
      }
      if (save) trainer.save();
    });
    return losses;
  }

  // Of the tokens of the model, with adapters merged into files, and into the weights that ranks hold.
  void expect_logits(const fs::path& adapter, const std::vector<double>& expected) {
    export_checkpoint(model_, folder_ / "merged", ExportFormat::fp32, Fp8Scale::fp32, ExportMtp::keep, adapter);
    for (const int ranks : {1, 2, 3}) {
      for (const auto& logits : {logits_of(ranks, folder_ / "merged", {}), logits_of(ranks, model_, adapter)}) {
        ASSERT_EQ(logits.size(), expected.size());
        for (size_t i = 0; i < logits.size(); ++i)
          ASSERT_NEAR(logits[i], expected[i], 2e-5) << i << ", ranks " << ranks;
      }
    }
  }

  std::vector<double> logits_of(int ranks, const fs::path& model, const fs::path& adapter) const {
    ScoreTokens tokens{2, 10, {}};
    for (const double id : values_in(model_ / "expected.safetensors", "tokens"))
      tokens.ids.push_back(static_cast<int32_t>(id));
    RunConfig run;
    run.model = read_model_config(model);
    run = score_config(run, tokens);
    std::vector<double> logits;
    run_local_ranks(ranks, [&](std::unique_ptr<Transport> transport) {
      Communicator world(std::move(transport), "world");
      const bool first = world.rank() == 0;
      const WorkerOptions options = score_options(run, world, {});
      Worker worker(std::move(world), options);
      load_checkpoint(model, worker.store(), nullptr);
      if (!adapter.empty()) StoredAdapter(adapter).merge(worker.store());
      for (const ResultTensor& tensor : score(worker, run, tokens, {})) {
        if (!first || tensor.name != "logits") continue;
        const auto* values = tensor.memory.as<float>();
        logits.assign(values, values + tensor.memory.bytes() / sizeof(float));
      }
    });
    return logits;
  }

  test::TemporaryDirectory folder_;
  fs::path model_ = kModels / GetParam();
  fs::path golden_ = kFolder / GetParam();
  fs::path adapter_ = golden_ / "adapter";
  RunConfig run_;
};

// Both sum in fp32, in another order.
TEST_P(AdapterFamilies, TrainToTheLossesOfPeft) {
  const std::vector<double> expected = values_in(golden_ / "expected.safetensors", "losses");
  ASSERT_EQ(expected.size(), 10U);
  EXPECT_LT(expected.back(), 0.8 * expected.front());
  std::vector<double> alone;
  for (const int ranks : {1, 2, 3}) {
    const std::vector<double> losses = losses_on(ranks, /*save=*/ranks == 3);
    if (alone.empty()) alone = losses;
    ASSERT_EQ(losses.size(), expected.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      EXPECT_NEAR(losses[i], expected[i], 1e-4) << "step " << i + 1 << ", ranks " << ranks;
      EXPECT_NEAR(losses[i], alone[i], test::kRankTolerance * alone[i]) << "step " << i + 1 << ", ranks " << ranks;
    }
  }
  // What is saved has the names that PEFT opened.
  const fs::path saved = fs::path(run_.out) / "checkpoints/latest";
  const ShardedReader written(saved), opened(adapter_);
  ASSERT_EQ(written.weight_map().size(), opened.weight_map().size());
  for (const auto& [name, file] : opened.weight_map()) EXPECT_TRUE(written.weight_map().contains(name)) << name;
  json config = json::parse(test::read_file(saved / kAdapterConfigFile));
  EXPECT_EQ(config["base_model_name_or_path"], model_.string());
  config["base_model_name_or_path"] = nullptr;
  json wanted = json::parse(test::read_file(adapter_ / kAdapterConfigFile));
  for (json* names : {&config, &wanted}) {
    for (const char* key : {"target_modules", "target_parameters"})
      std::sort((*names)[key].begin(), (*names)[key].end());
  }
  EXPECT_EQ(config, wanted);
  StoredAdapter(saved).check_base(model_);
}

TEST_P(AdapterFamilies, AreMergedToTheLogitsOfPeft) {
  expect_logits(adapter_, values_in(golden_ / "expected.safetensors", "logits"));
}

// In fp8 every weight below adapters takes 1 byte; other matrices are in bf16, routers and vectors in fp32.
TEST_P(AdapterFamilies, KeepFixedWeightsInTheirFormat) {
  const ShardedReader adapters(adapter_);
  size_t adapted = 0;
  for (const char* format : {"fp8", "bf16"}) {
    run_.adapter.weights = format;
    run_local_ranks(1, [&](std::unique_ptr<Transport> transport) {
      Trainer trainer(Communicator(std::move(transport), "world"), run_);
      for (const Parameter* weight : trainer.worker().store().parameters()) {
        if (weight->placement != Placement::fixed) continue;
        const bool is_vector = weight->value.num_dims() == 1 || weight->name().find(".gate.") != std::string::npos;
        for (const ParameterPart& part : weight->parts) {
          const bool is_adapted = !is_vector && adapters.weight_map().contains(adapter_name(part.name, 'A'));
          const DType wide = is_vector ? DType::f32 : DType::bf16;
          EXPECT_EQ(weight->value.dtype(), is_adapted && *format == 'f' ? DType::fp8 : wide) << part.name;
          adapted += is_adapted ? 1 : 0;
        }
      }
    });
  }
  EXPECT_EQ(2 * adapted, 2 * adapters.weight_map().size());
}

TEST_P(AdapterFamilies, RefuseTargetsOfOtherFamilies) {
  const bool is_mixtral = GetParam() == "mixtral";
  const std::string allowed = fmt::format("{}", fmt::join(projections_of(run_.model), ","));
  run_.adapter.targets = is_mixtral ? "gate_proj,up_proj" : "w1,w3";
  EXPECT_THAT(test::message_of([&] { check(run_, 1); }),
              HasSubstr(fmt::format("this model has no {}, allowed: all, or some of {} ",
                                    is_mixtral ? "gate_proj" : "w1", allowed)));
  EXPECT_TRUE(allowed.ends_with(is_mixtral ? "o_proj,w1,w3,w2" : "o_proj,gate_proj,up_proj,down_proj")) << allowed;
  run_.adapter.targets = is_mixtral ? "o_proj,w1" : "o_proj,gate_proj";
  EXPECT_THAT(test::message_of([&] { check(run_, 1); }),
              HasSubstr(is_mixtral ? "one of w1 and w3, allowed: both or none" : "one of gate_proj and up_proj"));
}

INSTANTIATE_TEST_SUITE_P(Models, AdapterFamilies,
                         testing::Values("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "olmoe", "glm4_moe_lite",
                                         "kimi_k2", "moonlight", "v2_yarn"),
                         [](const auto& parameter) { return parameter.param; });

// What PEFT saves after it trained on the class of transformers 5: both parameters of the experts, or one of them.
class JoinedAdapters : public AdapterFamilies {};

TEST_P(JoinedAdapters, AreMergedToo) {
  const fs::path joined = golden_ / "joined";
  expect_logits(joined, values_in(golden_ / "expected.safetensors", "joined_logits"));
  StoredAdapter(joined).check_base(model_);
  const char* other = GetParam() == "moonlight" ? "mixtral" : "v3_gelu";  // with names that this one has not
  EXPECT_THAT(test::message_of([&] { StoredAdapter(joined).check_base(kModels / other); }),
              HasSubstr("belongs to no weight of"));
  run_.adapter.init = joined.string();
  EXPECT_THAT(test::message_of([&] { losses_on(1, false); }), HasSubstr("adapters of all experts of a layer together"));
}

INSTANTIATE_TEST_SUITE_P(Models, JoinedAdapters,
                         testing::Values("mixtral", "qwen2_moe", "olmoe", "moonlight", "v2_yarn"),
                         [](const auto& parameter) { return parameter.param; });

// PEFT gives the parameter that joins two projections twice the rank; other patterns are no adapters that Cadre reads.
TEST(AdapterPatterns, AreThoseOfJoinedExperts) {
  const test::TemporaryDirectory folder;
  const fs::path copy = folder / "adapter";
  fs::copy(kFolder / "qwen2_moe/adapter", copy);
  EXPECT_EQ(StoredAdapter(copy).scale(), 2.0);
  json config = json::parse(test::read_file(copy / kAdapterConfigFile));
  config["rank_pattern"] = {{".*\\.q_proj", 4}};
  test::write_file(copy / kAdapterConfigFile, config.dump());
  EXPECT_THAT(test::message_of([&] { StoredAdapter{copy}; }), HasSubstr("rank_pattern = {\".*\\\\.q_proj\":4} is not"));
}

}  // namespace
}  // namespace cadre::adapter_families_test
