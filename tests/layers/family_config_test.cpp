// SPDX-License-Identifier: Apache-2.0
// config.json files of the families beside DeepSeek's, as Hugging Face transformers 5.24 writes them: what is read, what is refused
// because the class would not follow it, what is written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "layers/model/config.hpp"
#include "tests/support/messages.hpp"

namespace cadre::family_config_test {
namespace {

using nlohmann::json;
using test::expect_message;
using test::message_of;

ModelConfig read(const json& source) { return model_config_from_json(source, "config.json"); }

std::string refusal(json source, const json& changes) {
  source.update(changes);
  return message_of([&] { read(source); });
}

// MixtralConfig(...).save_pretrained of transformers 5.24.
json mixtral_of_transformers_5() {
  return json::parse(R"({
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "float32",
    "eos_token_id": 2, "head_dim": null, "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02,
    "intermediate_size": 24, "max_position_embeddings": 64, "model_type": "mixtral", "num_attention_heads": 4,
    "num_experts_per_tok": 2, "num_hidden_layers": 3, "num_key_value_heads": 2, "num_local_experts": 8,
    "output_router_logits": false, "pad_token_id": null, "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0, "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 256})");
}

TEST(FamilyConfig, ReadsMixtral) {
  const json source = mixtral_of_transformers_5();
  const ModelConfig config = read(source);
  EXPECT_EQ(config.model_type, "mixtral");
  EXPECT_EQ(config.n_routed_experts, 8);
  EXPECT_EQ(config.moe_intermediate_size, 24);
  EXPECT_TRUE(is_moe_layer(config, 0));
  EXPECT_TRUE(config.norm_topk_prob);
  EXPECT_EQ(config.rope_theta, 1e6);
  const json written = to_json(config);
  EXPECT_EQ(written["num_local_experts"], 8);
  EXPECT_EQ(read(written), config);
  json window = source;
  window["sliding_window"] = 64;  // as long as the longest sequence
  EXPECT_EQ(read(window), config);
  const auto refused = [&](const char* key, const json& value) { return refusal(source, {{key, value}}); };
  expect_message(refused("sliding_window", 63), {"sliding_window = 63", "null"});
  expect_message(refused("norm_topk_prob", false), {"norm_topk_prob = false", "what MixtralForCausalLM computes"});
  expect_message(refused("num_experts_per_tok", 1), {"norm_topk_prob = null", "what MixtralForCausalLM computes"});
  expect_message(refused("first_k_dense_replace", 1), {"first_k_dense_replace = 1", "MixtralForCausalLM"});
  expect_message(refused("n_shared_experts", 1), {"n_shared_experts = 1", "MixtralForCausalLM"});
  expect_message(refused("moe_intermediate_size", 25), {"moe_intermediate_size = 25", "intermediate_size = 24"});
  expect_message(refused("head_dim", 16), {"head_dim = 16"});
  expect_message(refused("attention_bias", true), {"attention_bias = true", "mixtral"});
  expect_message(refused("use_qk_norm", true), {"use_qk_norm = true", "mixtral"});
  ModelConfig other = config;
  other.n_shared_experts = 1;
  EXPECT_EQ(to_json(other)["model_type"], "cadre_mixtral");
  EXPECT_EQ(read(to_json(other)), other);
}

// Qwen3MoeConfig(...).save_pretrained of transformers 5.24.
json qwen3_of_transformers_5() {
  return json::parse(R"({
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": null,
    "decoder_sparse_step": 1, "dtype": "float32", "eos_token_id": null, "head_dim": 6, "hidden_act": "silu",
    "hidden_size": 16, "initializer_range": 0.02, "intermediate_size": 20, "max_position_embeddings": 64,
    "mlp_only_layers": [0], "model_type": "qwen3_moe", "moe_intermediate_size": 8, "norm_topk_prob": true,
    "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "num_local_experts": 6, "output_router_logits": false, "pad_token_id": null, "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "router_aux_loss_coef": 0.001,
    "sliding_window": 4096, "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 32})");
}

TEST(FamilyConfig, ReadsQwen3Moe) {
  const json source = qwen3_of_transformers_5();
  const ModelConfig config = read(source);
  EXPECT_EQ(config.first_k_dense_replace, 1);
  EXPECT_EQ(config.n_routed_experts, 6);
  EXPECT_EQ(head_dim(config), 6);
  EXPECT_TRUE(config.use_qk_norm);
  EXPECT_EQ(read(to_json(config)), config);
  EXPECT_EQ(to_json(config)["mlp_only_layers"], json({0}));
  const auto refused = [&](const char* key, const json& value) { return refusal(source, {{key, value}}); };
  expect_message(refused("mlp_only_layers", {1}), {"mlp_only_layers = [1]", "the first layers"});
  expect_message(refused("decoder_sparse_step", 2), {"decoder_sparse_step = 2", "allowed: 1"});
  expect_message(refused("use_sliding_window", true), {"use_sliding_window = true", "false"});
  expect_message(refused("use_qk_norm", false), {"use_qk_norm = false", "what Qwen3MoeForCausalLM computes"});
  expect_message(refused("head_dim", 5), {"head_dim = 5", "even number"});
  expect_message(refused("partial_rotary_factor", 0.5), {"partial_rotary_factor = 0.5", "1.0"});
  expect_message(refused("n_shared_experts", 1), {"n_shared_experts = 1", "Qwen3MoeForCausalLM"});
  expect_message(refused("scoring_func", "sigmoid"), {"scoring_func", "Qwen3MoeForCausalLM"});
  expect_message(refused("shared_expert_intermediate_size", 8), {"shared_expert_intermediate_size = 8", "qwen3_moe"});
}

TEST(FamilyConfig, ReadsOlmoe) {
  json source = mixtral_of_transformers_5();
  for (const char* key : {"num_local_experts", "router_jitter_noise"}) source.erase(key);
  source.update({{"model_type", "olmoe"}, {"num_experts", 8}, {"clip_qkv", nullptr}, {"attention_bias", true}});
  const ModelConfig config = read(source);
  EXPECT_TRUE(config.use_qk_norm && config.attention_bias);
  EXPECT_EQ(config.moe_intermediate_size, 24);
  EXPECT_EQ(read(to_json(config)), config);
  EXPECT_EQ(to_json(config)["architectures"], json({"OlmoeForCausalLM"}));
  EXPECT_EQ(config.clip_qkv, 0.0);
  EXPECT_TRUE(to_json(config)["clip_qkv"].is_null());
  source["clip_qkv"] = 8.0;
  const ModelConfig bounded = read(source);
  EXPECT_EQ(bounded.clip_qkv, 8.0);
  EXPECT_EQ(to_json(bounded)["clip_qkv"], 8.0);
  EXPECT_EQ(read(to_json(bounded)), bounded);
  expect_message(refusal(source, {{"clip_qkv", 0}}), {"clip_qkv = 0", "allowed: null or a number > 0"});
  expect_message(refusal(source, {{"clip_qkv", -1.0}}), {"clip_qkv = -1", "number >= 0"});
  expect_message(refusal(mixtral_of_transformers_5(), {{"clip_qkv", 8.0}}),
                 {"clip_qkv = 8", "0 with model_type mixtral"});
}

// What is left out has the value of transformers.
TEST(FamilyConfig, LayerTypesSayWhichLayersAreDense) {
  json source = {{"model_type", "glm4_moe_lite"}, {"hidden_size", 48},      {"intermediate_size", 64},
                 {"num_attention_heads", 4},      {"num_hidden_layers", 3}, {"vocab_size", 256}};
  EXPECT_EQ(read(source).first_k_dense_replace, 1);
  source["mlp_layer_types"] = {"dense", "dense", "sparse"};
  EXPECT_EQ(read(source).first_k_dense_replace, 2);
  EXPECT_EQ(to_json(read(source))["mlp_layer_types"], source["mlp_layer_types"]);
  for (const json& types :
       {json({"sparse", "dense", "sparse"}), json({"dense", "sparse"}), json({"dense", "x", "y"})}) {
    expect_message(refusal(source, {{"mlp_layer_types", types}}), {"mlp_layer_types = ", "dense ones first"});
  }
  expect_message(refusal(source, {{"first_k_dense_replace", 1}}), {"mlp_layer_types = ", "first_k_dense_replace = 1"});
}

ModelConfig deepseek_moe() {
  ModelConfig config;
  config.hidden_size = 48;
  config.num_hidden_layers = 3;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.intermediate_size = config.moe_intermediate_size = 64;
  config.n_routed_experts = 8;
  config.num_experts_per_tok = 2;
  return config;
}

// DeepSeekMoE with the gate of V3: multi-head attention, all elements of a head turned.
ModelConfig deepseek_moe_with_v3_gate() {
  ModelConfig config = deepseek_moe();
  config.scoring_func = ScoreFunction::sigmoid;
  config.topk_method = TopkMethod::noaux_tc;
  config.routed_scaling_factor = 2.5;
  return config;
}

TEST(FamilyConfig, DeepSeekMoeWithTheGateOfV3IsSavedAsGlm4Moe) {
  EXPECT_EQ(to_json(deepseek_moe())["architectures"], json({"DeepseekForCausalLM"}));
  EXPECT_FALSE(to_json(deepseek_moe()).contains("cadre_model_type"));
  ModelConfig config = deepseek_moe_with_v3_gate();
  json written = to_json(config);
  EXPECT_EQ(written["architectures"], json({"Glm4MoeForCausalLM"}));
  EXPECT_EQ(written["model_type"], "glm4_moe");
  EXPECT_EQ(written["cadre_model_type"], "deepseek");
  EXPECT_EQ(written["partial_rotary_factor"], 1.0);
  EXPECT_EQ(written["head_dim"], 12);
  written.erase("cadre_model_type");
  ModelConfig glm = config;
  glm.model_type = "glm4_moe";
  glm.head_dim = 12;
  EXPECT_EQ(read(json::parse(written.dump())), glm);
  EXPECT_EQ(to_json(glm), written);
  EXPECT_EQ(read(to_json(glm)), glm);
  written.update({{"use_qk_norm", true}, {"head_dim", 16}, {"attention_bias", true}});
  written.erase("partial_rotary_factor");
  glm = read(written);
  EXPECT_TRUE(glm.use_qk_norm && glm.attention_bias);
  EXPECT_EQ(head_dim(glm), 16);
  EXPECT_EQ(rotary_dim(glm), 8);  // half of it where the file says nothing
  EXPECT_EQ(read(to_json(glm)), glm);
  expect_message(refusal(written, {{"partial_rotary_factor", 0.2}}), {"partial_rotary_factor = 0.2", "even number"});
  expect_message(
      refusal(written, {{"partial_rotary_factor", 0.5}, {"rope_parameters", {{"partial_rotary_factor", 1.0}}}}),
      {"partial_rotary_factor = 0.5", "two places"});
  config.scoring_func = ScoreFunction::softmax;
  EXPECT_EQ(to_json(config)["model_type"], "cadre_deepseek");
}

// Whatever class computes the model.
TEST(FamilyConfig, AFamilyIsReadAsTheOneItWasWrittenAs) {
  const ModelConfig config = deepseek_moe_with_v3_gate();
  json written = to_json(config);
  std::vector<std::string> unused;
  EXPECT_EQ(model_config_from_json(written, "config.json", &unused), config);
  EXPECT_EQ(unused, std::vector<std::string>());
  expect_message(refusal(written, {{"cadre_model_type", "glm"}}), {"cadre_model_type = \"glm\"", "deepseek | "});
  expect_message(refusal(written, {{"cadre_model_type", 7}}), {"cadre_model_type = 7", "deepseek | "});
  for (const char* family : {"mixtral", "deepseek_v3"}) {
    expect_message(refusal(written, {{"cadre_model_type", family}}),
                   {family, "a family whose models are saved as model_type glm4_moe", "delete the key"});
  }
  expect_message(refusal(written, {{"scoring_func", "softmax"}}), {"scoring_func", "what Glm4MoeForCausalLM computes"});
  expect_message(refusal(written, {{"head_dim", 16}}), {"cadre_model_type = \"deepseek\"", "glm4_moe"});
  expect_message(refusal(written, {{"use_qk_norm", true}}), {"use_qk_norm = true", "false with model_type deepseek"});
  // A file that names the family itself.
  written.erase("cadre_model_type");
  written["model_type"] = "deepseek";
  EXPECT_EQ(read(written), config);
}

}  // namespace
}  // namespace cadre::family_config_test
