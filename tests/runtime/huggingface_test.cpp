// SPDX-License-Identifier: Apache-2.0
// Models that Hugging Face transformers saved and computed (tests/golden/huggingface, made by `make` there): logits, loss and
// all gradients are the same. And what a directory may hold that no model of ours reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <functional>
#include <memory>
#include <numeric>
#include <set>

#include "comm/transport/local.hpp"
#include "runtime/checkpoint/export.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/checkpoint/stored_values.hpp"
#include "runtime/infer/score.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/score_comparison.hpp"

namespace cadre::huggingface_test {
namespace {

namespace fs = std::filesystem;
using test::expect_message;
using test::message_of;
using test::ScoreTensor;
using testing::ElementsAre;

const fs::path kFolder = fs::path(CADRE_TEST_FOLDER) / "golden/huggingface";

ScoreTokens tokens_in(const SafetensorsReader& expected) {
  const TensorEntry& entry = *expected.find("tokens");
  ScoreTokens tokens{entry.shape[0], entry.shape[1], {}};
  for (const double id : test::values_of(ScoreTensor{"tokens", DType::i64, entry.shape, expected.bytes(entry)})) {
    tokens.ids.push_back(static_cast<int32_t>(id));
  }
  return tokens;
}

void compare(Communicator world, const fs::path& directory, const SafetensorsReader& expected) {
  const ScoringOptions scoring = {.gradients = true};
  RunConfig run;
  run.model = read_model_config(directory);
  const ScoreTokens tokens = tokens_in(expected);
  run = score_config(run, tokens);
  const WorkerOptions options = score_options(run, world, scoring);
  const bool speaks = world.rank() == 0;
  Worker worker(std::move(world), options);
  load_checkpoint(directory, worker.store(), nullptr);
  const std::vector<ResultTensor> results = score(worker, run, tokens, scoring);
  if (!speaks) return;
  std::vector<ScoreTensor> actual;
  for (const ResultTensor& tensor : results) {
    actual.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.memory.span()});
  }
  for (const std::string& line : test::differences_of(actual, test::tensors_of(expected), test::kFp32Tolerance)) {
    ADD_FAILURE() << line;
  }
}

class HuggingFace : public testing::TestWithParam<const char*> {};

TEST_P(HuggingFace, LogitsLossAndGradientsAreThoseOfTransformers) {
  const SafetensorsReader expected(kFolder / GetParam() / "expected.safetensors");
  for (const int ranks : {1, 2, 3}) {
    run_local_ranks(ranks, [&](std::unique_ptr<Transport> transport) {
      compare(Communicator(std::move(transport), "world"), kFolder / GetParam(), expected);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Models, HuggingFace,
                         testing::Values("v3_bias_fp16", "v3_gelu", "v3_yarn_factor", "v2_norm", "v2_yarn", "moonlight",
                                         "kimi_k2", "glm4_moe_lite", "mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe",
                                         "olmoe", "olmoe_clip"),
                         [](const auto& parameter) { return std::string(parameter.param); });

class OlderSpelling : public testing::TestWithParam<const char*> {};

// Positions in two keys, rope_theta and rope_scaling, as published files have them.
TEST_P(OlderSpelling, IsTheSameModel) {
  const fs::path source = kFolder / GetParam();
  const test::TemporaryDirectory older;
  fs::copy(source / "config.older.json", older / "config.json");
  fs::copy(source / "model.safetensors", older / "model.safetensors");
  EXPECT_TRUE(read_json_file(older / "config.json").contains("rope_scaling"));
  EXPECT_TRUE(read_json_file(source / "config.json").contains("rope_parameters"));
  const SafetensorsReader expected(source / "expected.safetensors");
  for (const int ranks : {1, 2, 3}) {
    run_local_ranks(ranks, [&](std::unique_ptr<Transport> transport) {
      compare(Communicator(std::move(transport), "world"), older.path(), expected);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Models, OlderSpelling, testing::Values("v3_yarn_factor", "v2_yarn", "moonlight", "kimi_k2"),
                         [](const auto& parameter) { return std::string(parameter.param); });

class Family : public testing::TestWithParam<const char*> {};

// Its config.json, read and written, says what transformers wrote; no tensor of its files is without a place.
TEST_P(Family, IsWrittenAsTransformersWritesIt) {
  const nlohmann::json source = read_json_file(kFolder / GetParam() / "config.json");
  const ModelConfig model = read_model_config(kFolder / GetParam());
  EXPECT_EQ(model.model_type, source["model_type"]);
  const nlohmann::json written = to_json(model);
  int num_compared = 0;
  for (const auto& [key, value] : source.items()) {
    if (!written.contains(key)) continue;
    EXPECT_EQ(written[key], value) << key;
    ++num_compared;
  }
  EXPECT_GE(num_compared, 20);
  for (const char* key : {"architectures", "model_type", "intermediate_size", "num_attention_heads"}) {
    EXPECT_TRUE(written.contains(key)) << key;
  }
  EXPECT_EQ(model_config_from_json(written, "written"), model);
  EXPECT_EQ(unread_tensors(kFolder / GetParam(), model), std::vector<std::string>());
  const SafetensorsReader reader(kFolder / GetParam() / "model.safetensors");
  int64_t num_elements = 0;
  for (const TensorEntry& entry : reader.entries()) {
    num_elements += std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
  }
  EXPECT_EQ(count_parameters(model).total, num_elements);
}

INSTANTIATE_TEST_SUITE_P(Models, Family,
                         testing::Values("v2_yarn", "moonlight", "kimi_k2", "glm4_moe_lite", "mixtral", "qwen2_moe",
                                         "qwen3_moe", "glm4_moe", "olmoe", "olmoe_clip"),
                         [](const auto& parameter) { return std::string(parameter.param); });

// A copy of v3_gelu whose config.json `change` has changed, with these tensors beside its own.
class UnreadTensors : public testing::Test {
 protected:
  UnreadTensors() {
    fs::copy(kFolder / "v3_gelu/model.safetensors", directory_ / "model.safetensors");
    config_ = read_json_file(kFolder / "v3_gelu/config.json");
  }
  void add(const std::vector<std::string>& names, const std::string& left_out = "") {
    std::vector<TensorSource> sources;
    const SafetensorsReader old(kFolder / "v3_gelu/model.safetensors");
    for (const TensorEntry& entry : old.entries()) {
      if (entry.name != left_out) sources.push_back({entry.name, *entry.dtype, entry.shape, old.bytes(entry)});
    }
    for (const std::string& name : names) {
      sources.push_back({name, DType::f32, {2}, std::as_bytes(std::span(values_))});
    }
    fs::remove(directory_ / "model.safetensors");
    write_safetensors(directory_ / "model.safetensors", sources);
  }
  std::vector<std::string> unread() {
    write_text_file(directory_ / "config.json", config_.dump());
    return unread_tensors(directory_.path(), read_model_config(directory_.path()));
  }

  test::TemporaryDirectory directory_;
  nlohmann::json config_;
  std::vector<float> values_ = {1.0F, 2.0F};
};

TEST_F(UnreadTensors, AreNamedWhereTheModelHasNoSuchLayer) {
  EXPECT_EQ(unread(), std::vector<std::string>());
  add({"model.layers.7.mlp.up_proj.weight", "model.layers.7.mlp.down_proj.weight", "score.weight"});
  EXPECT_THAT(unread(), ElementsAre("model.layers.7.*", "score.weight"));
  config_["num_hidden_layers"] = 1;
  EXPECT_THAT(unread(), ElementsAre("model.layers.1.*", "model.layers.7.*", "score.weight"));
  config_["num_nextn_predict_layers"] = 1;  // layer 1 has no eh_proj: it is no such module
  EXPECT_THAT(unread(), ElementsAre("model.layers.1.*", "model.layers.7.*", "score.weight"));
}

TEST_F(UnreadTensors, OfMtpModulesAndFrequenciesAreNoNews) {
  const auto stored_modules = [&] {
    return stored_mtp_modules(directory_.path(), read_model_config(directory_.path()));
  };
  config_["num_nextn_predict_layers"] = 1;
  EXPECT_EQ(unread(), std::vector<std::string>());
  EXPECT_EQ(stored_modules(), 0);
  add({"model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.2.eh_proj.weight", "model.layers.2.enorm.weight"});
  EXPECT_EQ(unread(), std::vector<std::string>());
  EXPECT_EQ(stored_modules(), 1);
  config_["num_nextn_predict_layers"] = 0;
  EXPECT_EQ(unread(), std::vector<std::string>());
}

TEST_F(UnreadTensors, OneThatIsMissingIsNamedAsItIsLoaded) {
  const std::string name = "model.layers.1.mlp.experts.3.up_proj.weight";
  for (const bool is_there : {true, false}) {
    add({}, is_there ? "" : name);
    EXPECT_EQ(unread(), std::vector<std::string>());
    const std::string message = message_of([&] {
      run_local_ranks(1, [&](std::unique_ptr<Transport> transport) {
        RunConfig run;
        run.model = read_model_config(directory_.path());
        Communicator world(std::move(transport), "world");
        const WorkerOptions options = training_options(run, world);
        Worker worker(std::move(world), options);
        load_checkpoint(directory_.path(), worker.store(), nullptr);
      });
    });
    const std::string wanted = is_there ? "no error" : "holds no tensor \"" + name + "\"";
    EXPECT_NE(message.find(wanted), std::string::npos) << message;
  }
}

// At once, whatever the number.
TEST_F(UnreadTensors, ALayerOrAnExpertThatIsNotThereIsNamed) {
  config_["n_routed_experts"] = 999'999;
  expect_message(message_of([&] { unread(); }),
                 {"n_routed_experts = 999999", "no tensor model.layers.1.mlp.experts.999998."});
  config_["num_hidden_layers"] = 100'000;
  expect_message(message_of([&] { unread(); }), {"num_hidden_layers = 100000", "no tensor model.layers.99999."});
}

TEST_F(UnreadTensors, OfALayerThatIsReadAreAnError) {
  const auto message = [&] { return message_of([&] { unread(); }); };
  config_["attention_bias"] = false;
  expect_message(message(), {"model.safetensors", "no place for tensor", "self_attn.kv_a_proj_with_mqa.bias"});
  config_["attention_bias"] = true;
  config_["n_routed_experts"] = 3;
  expect_message(message(), {"no place for tensor", "mlp.experts.3."});
  config_["n_routed_experts"] = 6;
  config_["tie_word_embeddings"] = true;
  expect_message(message(), {"no place for tensor", "lm_head.weight", "tie_word_embeddings"});
}

// Both keys: transformers 5 takes dtype, older ones torch_dtype.
TEST(ExportOfHuggingFace, SaysTheNewElementTypeAndLeavesMtpModulesOnRequest) {
  const test::TemporaryDirectory folder;
  const fs::path source = folder / "source";
  fs::copy(kFolder / "v3_gelu", source);
  nlohmann::json config = read_json_file(source / "config.json");
  config["num_hidden_layers"] = 1;
  config["num_nextn_predict_layers"] = 1;
  write_text_file(source / "config.json", config.dump());
  ASSERT_EQ(config["dtype"], "float32");
  export_checkpoint(source, folder / "all", ExportFormat::bf16, Fp8Scale::fp32);
  export_checkpoint(source, folder / "main", ExportFormat::bf16, Fp8Scale::fp32, ExportMtp::drop);
  for (const char* name : {"all", "main"}) {
    config = read_json_file(folder / name / "config.json");
    EXPECT_EQ(config["dtype"], "bfloat16");
    EXPECT_EQ(config["torch_dtype"], "bfloat16");
  }
  EXPECT_EQ(config["num_nextn_predict_layers"], 0);
  const auto layers_of = [&](const char* name) {
    std::set<int64_t> layers;
    const ShardedReader reader(folder / name);
    for (const auto& [tensor, file] : reader.weight_map()) {
      layers.insert(layer_of(tensor).value_or(-1));
    }
    return layers;
  };
  EXPECT_THAT(layers_of("all"), ElementsAre(-1, 0, 1));
  EXPECT_THAT(layers_of("main"), ElementsAre(-1, 0));
}

TEST(JsonFile, NestedTooDeepIsRefused) {
  const test::TemporaryDirectory folder;
  const auto nest = [&](size_t depth) {
    test::write_file(folder / "deep.json", std::string(depth, '[') + std::string(depth, ']'));
  };
  nest(100);
  EXPECT_NO_THROW(read_json_file(folder / "deep.json"));
  for (const size_t depth : {110UL, 1'000'000UL}) {
    nest(depth);
    const std::string message = test::message_of([&] { read_json_file(folder / "deep.json"); });
    EXPECT_NE(message.find("is nested more than 100 deep"), std::string::npos) << depth << ": " << message;
  }
}

}  // namespace
}  // namespace cadre::huggingface_test
