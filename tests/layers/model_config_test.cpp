// SPDX-License-Identifier: Apache-2.0
// A config.json is read, written and read again.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "layers/model/config.hpp"
#include "tests/support/model_configs.hpp"

namespace cadre::model_config_test {
namespace {

using nlohmann::json;
using test::deepseek_moe_16b;
using test::deepseek_v3;
using test::small_mixture;

TEST(ModelConfig, ReadsPublishedConfig) {
  const ModelConfig config = model_config_from_json(deepseek_moe_16b(), "config.json");
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.n_routed_experts, 64);
  EXPECT_EQ(config.eos_token_id, 100001);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.scoring_func, ScoreFunction::softmax);
  EXPECT_FALSE(is_moe_layer(config, 0));
  EXPECT_TRUE(is_moe_layer(config, 1));
  EXPECT_TRUE(is_moe_layer(config, 27));
}

TEST(ModelConfig, AbsentAndNullKeysTakeTheDefaultOfTheArchitecture) {
  json source = deepseek_moe_16b();
  source.erase("num_key_value_heads");
  source.erase("rope_theta");
  source["eos_token_id"] = nullptr;
  const ModelConfig config = model_config_from_json(source, "config.json");
  EXPECT_EQ(config.num_key_value_heads, 16);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.eos_token_id, -1);
}

TEST(ModelConfig, JsonRoundTripKeepsEveryField) {
  ModelConfig config = small_mixture();
  config.norm = "layernorm";
  config.topk_method = TopkMethod::noaux_tc;
  config.scoring_func = ScoreFunction::sigmoid;
  config.bias_update_rate = 0.1;  // not representable: shortest text must come back to the same double
  config.rope_theta = 5e5;
  config.norm_topk_prob = true;
  config.eos_token_id = 0;
  config.router.select.rule = SelectRule::hybrid;
  config.router.bias.expert_task = {0, 1, 2, 3, 1, 0};
  config.router.capacity.factor = 1.25;
  config.router.losses.by_sequence = true;
  config.router.bias.weighs = true;
  config.router.losses.importance_form = {VarianceForm::Kind::raw, Variance::unbiased};
  config.router.losses.expert_form = {VarianceForm::Kind::counts, Variance::population};
  config.router.losses.device_form = {VarianceForm::Kind::counts, Variance::unbiased};
  config.router.losses.devices = 3;
  config.router.losses.layout = DeviceLayout::cyclic;
  config.router.losses.diversity = 0.25;
  config.router.capacity.eval_tokens = 64;
  const json written = to_json(config);
  EXPECT_EQ(model_config_from_json(json::parse(written.dump(2)), "config.json"), config);
  EXPECT_EQ(written["architectures"], json::array({"CadreForCausalLM"}));  // a hybrid router
  EXPECT_EQ(written["model_type"], "cadre_deepseek");
  EXPECT_EQ(written["torch_dtype"], "float32");
  EXPECT_TRUE(written["bos_token_id"].is_null());
  EXPECT_EQ(written["eos_token_id"], 0);
  EXPECT_EQ(written["tie_word_embeddings"], false);
}

TEST(ModelConfig, ReadsDeepSeekV3AndNamesWhatChangesNothing) {
  std::vector<std::string> unused;
  const ModelConfig config = model_config_from_json(deepseek_v3(), "config.json", &unused);
  EXPECT_EQ(unused, (std::vector<std::string>{"ep_size", "pretraining_tp", "quantization_config"}));
  EXPECT_EQ(config.q_lora_rank, 1536);
  EXPECT_EQ(config.rope_scaling.type, "yarn");
  EXPECT_EQ(config.rope_scaling.factor, 40.0);
  EXPECT_EQ(config.rope_scaling.mscale_all_dim, 1.0);
  EXPECT_EQ(config.num_nextn_predict_layers, 1);
  EXPECT_EQ(model_config_from_json(json::parse(to_json(config).dump()), "config.json"), config);
  EXPECT_EQ(to_json(config)["architectures"], json::array({"DeepseekV3ForCausalLM"}));
  EXPECT_EQ(to_json(config)["rope_scaling"]["type"], "yarn");
}

TEST(ModelConfig, ReadsEverySpellingOfRopeSettings) {
  const ModelConfig config = model_config_from_json(deepseek_v3(), "config.json");
  json source = deepseek_v3();
  json rope = source["rope_scaling"];
  rope.erase("type");
  rope["rope_type"] = "yarn";
  rope["factor"] = 40.0;
  source["rope_scaling"] = rope;
  EXPECT_EQ(model_config_from_json(source, "config.json"), config);
  rope["rope_theta"] = 10000.0;
  source.erase("rope_scaling");
  source.erase("rope_theta");
  source["rope_parameters"] = rope;
  EXPECT_EQ(model_config_from_json(source, "config.json"), config);
  source["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};
  EXPECT_EQ(model_config_from_json(source, "config.json").rope_scaling, RopeScaling());
  EXPECT_EQ(model_config_from_json(source, "config.json").rope_theta, 5e5);
}

TEST(ModelConfig, NullIsNotTheDefaultOfTheArchitecture) {
  json source = deepseek_v3();
  source["q_lora_rank"] = nullptr;
  source["n_group"] = nullptr;
  source["topk_group"] = nullptr;
  const ModelConfig config = model_config_from_json(source, "config.json");
  EXPECT_EQ(config.q_lora_rank, 0);
  EXPECT_EQ(config.n_group, 1);
  EXPECT_TRUE(to_json(config)["q_lora_rank"].is_null());
  EXPECT_EQ(model_config_from_json(json::parse(to_json(config).dump()), "config.json"), config);
  for (const char* key : {"q_lora_rank", "scoring_func", "topk_method", "n_group", "topk_group", "norm_topk_prob"}) {
    source.erase(key);
  }
  EXPECT_EQ(model_config_from_json(source, "config.json"), model_config_from_json(deepseek_v3(), "config.json"));
}

TEST(ModelConfig, LayerFrequencyCountsFromLayerZero) {
  ModelConfig config = small_mixture();
  config.num_hidden_layers = 6;
  config.moe_layer_freq = 2;
  std::string layers;
  for (int64_t layer = 0; layer < 6; ++layer) layers += is_moe_layer(config, layer) ? 'M' : 'd';
  EXPECT_EQ(layers, "ddMdMd");
}

}  // namespace
}  // namespace cadre::model_config_test
