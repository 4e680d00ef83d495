// SPDX-License-Identifier: Apache-2.0
// config.json files as Hugging Face transformers 4.57 and 5.24 write them and as people edit them: what is read, what is
// noted, what is refused; and under which name a model is saved.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <functional>

#include "layers/model/config.hpp"
#include "layers/model/family.hpp"
#include "layers/model/router_options.hpp"
#include "tests/support/messages.hpp"

namespace cadre::config_json_test {
namespace {

using nlohmann::json;
using test::expect_message;
using test::message_of;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

// DeepseekV3Config(...).save_pretrained of transformers 5.24.
json v3_of_transformers_5() {
  return json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0,
    "dtype": "float32", "eos_token_id": 1, "first_k_dense_replace": 1, "head_dim": 6, "hidden_act": "silu",
    "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 64, "kv_lora_rank": 12,
    "max_position_embeddings": 64, "model_type": "deepseek_v3", "moe_intermediate_size": 24, "n_group": 4,
    "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 4,
    "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_key_value_heads": 4, "num_nextn_predict_layers": 1,
    "output_router_logits": false, "pad_token_id": null, "pretraining_tp": 1, "q_lora_rank": 16, "qk_head_dim": 16,
    "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "rms_norm_eps": 1e-06, "rope_interleave": true,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "routed_scaling_factor": 2.5,
    "tie_word_embeddings": false, "topk_group": 2, "transformers_version": "5.24.0", "use_cache": true,
    "v_head_dim": 14, "vocab_size": 256})");
}

// DeepseekV2Config of transformers 5.24: no scoring_func, groups are null, mlp_bias.
json v2_of_transformers_5() {
  json source = v3_of_transformers_5();
  for (const char* key : {"num_nextn_predict_layers", "rope_interleave"}) source.erase(key);
  source.update({{"model_type", "deepseek_v2"},
                 {"architectures", {"DeepseekV2ForCausalLM"}},
                 {"mlp_bias", false},
                 {"n_group", nullptr},
                 {"topk_group", nullptr},
                 {"topk_method", "greedy"},
                 {"norm_topk_prob", false},
                 {"routed_scaling_factor", 1.0},
                 {"n_shared_experts", 2}});
  return source;
}

json yarn_of_transformers_5() {
  return {{"rope_type", "yarn"},  {"type", "yarn"},        {"factor", 4.0},   {"original_max_position_embeddings", 16},
          {"mscale", 1.0},        {"mscale_all_dim", 1.0}, {"beta_fast", 32}, {"beta_slow", 1},
          {"rope_theta", 10000.0}};
}

ModelConfig read(const json& source, std::vector<std::string>* unused = nullptr) {
  return model_config_from_json(source, "config.json", unused);
}

std::string refusal(json source, const json& changes) {
  source.update(changes);
  return message_of([&] { read(source); });
}

void expect_all(const std::vector<std::string>& found, const std::vector<std::string>& wanted) {
  for (const std::string& text : wanted) EXPECT_THAT(found, Contains(text));
}

TEST(ConfigJson, ReadsWhatTransformers5Writes) {
  std::vector<std::string> unused;
  const ModelConfig v3 = read(v3_of_transformers_5(), &unused);
  EXPECT_EQ(unused, (std::vector<std::string>{"head_dim", "output_router_logits", "pad_token_id", "pretraining_tp",
                                              "qk_head_dim"}));
  EXPECT_EQ(v3.scoring_func, ScoreFunction::sigmoid);
  EXPECT_EQ(v3.topk_method, TopkMethod::noaux_tc);
  EXPECT_EQ(v3.n_group, 4);
  unused.clear();
  const ModelConfig v2 = read(v2_of_transformers_5(), &unused);
  EXPECT_THAT(unused, Contains("mlp_bias"));
  EXPECT_EQ(v2.scoring_func, ScoreFunction::softmax);
  EXPECT_EQ(v2.topk_method, TopkMethod::greedy);
  EXPECT_EQ(v2.n_group, 1);
  EXPECT_EQ(v2.rope_scaling, RopeScaling());
}

// What transformers 4.57 adds: other names of keys, the defaults of generation and of classifiers, the attention that was on.
TEST(ConfigJson, ReadsWhatTransformers4Writes) {
  json source = v3_of_transformers_5();
  source.erase("rope_parameters");
  source.erase("dtype");
  const ModelConfig config = read(v3_of_transformers_5());
  source.update({{"_attn_implementation_autoset", true},
                 {"torch_dtype", "bfloat16"},
                 {"rope_theta", 10000.0},
                 {"rope_scaling", nullptr},
                 {"num_local_experts", 8},
                 {"num_experts", 8},
                 {"is_decoder", false},
                 {"is_encoder_decoder", false},
                 {"pruned_heads", json::object()},
                 {"id2label", {{"0", "LABEL_0"}}},
                 {"max_length", 20},
                 {"temperature", 1.0},
                 {"top_k", 50},
                 {"chunk_size_feed_forward", 0},
                 {"partial_rotary_factor", 1.0},
                 {"sliding_window", nullptr},
                 {"layer_types", {"full_attention"}}});
  std::vector<std::string> unused;
  EXPECT_EQ(read(source, &unused), config);
  expect_all(unused, {"_attn_implementation_autoset", "num_experts (read as n_routed_experts)", "pruned_heads",
                      "sliding_window", "temperature"});
  source.erase("n_routed_experts");
  EXPECT_EQ(read(source), config);
}

TEST(ConfigJson, ReadsEveryFormOfYarn) {
  json source = v3_of_transformers_5();
  source["rope_parameters"] = yarn_of_transformers_5();
  const ModelConfig config = read(source);
  EXPECT_EQ(config.rope_scaling.factor, 4.0);
  const auto with = [&](const json& changes) {
    json changed = source;
    changed["rope_parameters"].update(changes);
    return read(changed).rope_scaling;
  };
  const RopeScaling same = config.rope_scaling;
  EXPECT_EQ(with({{"attention_factor", nullptr}, {"truncate", true}, {"partial_rotary_factor", 1.0}}), same);
  EXPECT_EQ(with({{"beta_fast", nullptr}, {"beta_slow", 0}}), same);  // 32 and 1
  EXPECT_EQ(with({{"factor", nullptr}}).factor, 4.0);                 // 64 / 16
  EXPECT_EQ(with({{"original_max_position_embeddings", nullptr}}).original_max_position_embeddings, 64);
  EXPECT_EQ(with({{"attention_factor", 1.25}}).attention_factor, 1.25);
  EXPECT_FALSE(with({{"truncate", false}}).truncate);
  json old = source;
  old.erase("rope_parameters");
  old["rope_scaling"] = yarn_of_transformers_5();
  EXPECT_EQ(read(old), config);
  old["rope_parameters"] = yarn_of_transformers_5();
  EXPECT_EQ(read(old), config);
  old["rope_parameters"]["factor"] = 8.0;
  expect_message(message_of([&] { read(old); }), {"rope_scaling = ", "the same as rope_parameters"});
}

// In DeepSeek's code a missing mscale is 1 and a missing mscale_all_dim 0; transformers takes both or neither.
TEST(ConfigJson, RefusesYarnThatPublishedCodeAndTransformersReadDifferently) {
  const auto with = [](const char* key, const json& value) {
    json rope = yarn_of_transformers_5();
    rope[key] = value;
    return refusal(v3_of_transformers_5(), {{"rope_parameters", rope}});
  };
  expect_message(with("mscale", nullptr), {"rope_parameters.mscale = null", "mscale_all_dim", "disagree"});
  expect_message(with("mscale", 0), {"rope_parameters.mscale = 0", "mscale_all_dim"});
  expect_message(with("attention_factor", 0), {"rope_parameters.attention_factor = 0"});
  expect_message(with("truncate", nullptr), {"rope_parameters.truncate = null"});
  expect_message(with("partial_rotary_factor", 0.5), {"rope_parameters.partial_rotary_factor = 0.5", "1.0"});
  expect_message(with("short_factor", json::array({1.0})), {"unknown key rope_parameters.short_factor = [1.0]"});
  expect_message(with("rope_type", "longrope"), {"rope_parameters.type = \"yarn\"", "longrope"});
  ModelConfig config = read(v3_of_transformers_5());
  config.rope_scaling.type = "yarn";
  config.rope_scaling.factor = 4.0;
  config.rope_scaling.mscale = 0.5;
  const json written = to_json(config);
  // 0.1 m ln 4 + 1 with m = 0.5 over 1: what DeepSeek's code makes of it, written out for others.
  EXPECT_DOUBLE_EQ(written["rope_scaling"]["attention_factor"], 0.05 * std::log(4.0) + 1.0);
  EXPECT_EQ(to_json(read(written)), written);
}

TEST(ConfigJson, TheInnerThetaCounts) {
  json source = v3_of_transformers_5();
  source["rope_theta"] = 5000.0;
  std::vector<std::string> unused;
  EXPECT_EQ(read(source, &unused).rope_theta, 10000.0);
  EXPECT_THAT(unused, Contains("rope_theta = 5000 (rope_parameters.rope_theta = 10000 counts)"));
  source["rope_parameters"] = {{"rope_theta", 700.0}};  // without a type, as transformers takes it
  EXPECT_EQ(read(source).rope_theta, 700.0);
  source["rope_parameters"] = {{"rope_type", "default"}};
  EXPECT_EQ(read(source).rope_theta, 5000.0);
  source["rope_parameters"] = {{"rope_type", "default"}, {"factor", 40}};
  unused.clear();
  EXPECT_EQ(read(source, &unused).rope_scaling, RopeScaling());
  EXPECT_THAT(unused, Contains("rope_parameters.factor"));
}

TEST(ConfigJson, EndTokensMayBeAList) {
  json source = v3_of_transformers_5();
  source["eos_token_id"] = {1, 7, 3};
  const ModelConfig config = read(source);
  EXPECT_EQ(config.eos_token_id, 1);
  EXPECT_THAT(end_tokens(config), ElementsAre(1, 7, 3));
  EXPECT_EQ(to_json(config)["eos_token_id"], json({1, 7, 3}));
  EXPECT_EQ(read(to_json(config)), config);
  source["eos_token_id"] = {5};
  EXPECT_EQ(to_json(read(source))["eos_token_id"], 5);
  source["eos_token_id"] = json::array();
  EXPECT_TRUE(end_tokens(read(source)).empty());
  expect_message(refusal(source, {{"eos_token_id", {1, "x"}}}), {"eos_token_id = [1,\"x\"]", "list"});
  expect_message(refusal(source, {{"eos_token_id", {1, 256}}}), {"more_eos_token_ids = \"256\"", "[0, 255]"});
}

TEST(ConfigJson, AKeyThatIsOffIsANoteAndOneThatMayChangeTheModelAnError) {
  json source = v3_of_transformers_5();
  source.update({{"use_mla_absorb", false}, {"vision_config", nullptr}, {"extra", json::object()}, {"note", ""}});
  std::vector<std::string> unused;
  EXPECT_EQ(read(source, &unused), read(v3_of_transformers_5()));
  expect_all(unused, {"use_mla_absorb", "vision_config", "extra", "note"});
  for (const json& value : {json(true), json(0.5), json("x"), json::array({1}), json(0)}) {
    expect_message(refusal(source, {{"use_mla_absorb", value}}), {"unknown key use_mla_absorb", "delete a key"});
  }
  unused.clear();
  source["a\nb"] = nullptr;
  read(source, &unused);
  expect_all(unused, {"a\\nb"});
  // Misspelt: false is not the default of the architecture.
  expect_message(refusal(source, {{"norm_topk_probs", false}}), {"unknown key norm_topk_probs", "norm_topk_prob"});
  struct Case {
    json changes;
    std::initializer_list<const char*> parts;
  };
  const Case cases[] = {
      {{{"num_local_experts", 16}}, {"num_local_experts = 16", "n_routed_experts = 8"}},
      {{{"head_dim", 16}}, {"head_dim = 16", "qk_rope_head_dim = 6"}},
      {{{"qk_head_dim", 12}}, {"qk_head_dim = 12", "= 16"}},
      {{{"mlp_bias", true}}, {"mlp_bias = true", "allowed: false"}},
      {{{"attention_dropout", 0.1}}, {"attention_dropout = 0.1", "allowed: 0.0"}},
      {{{"is_encoder_decoder", true}}, {"is_encoder_decoder = true"}},
      {{{"partial_rotary_factor", 0.5}}, {"partial_rotary_factor = 0.5"}},
      {{{"layer_types", {"sliding_attention"}}}, {"layer_types = [\"sliding_attention\"]"}},
      {{{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}, {"rope_parameters = an object"}},
      {{{"hidden_act", "gelu_new"}}, {"hidden_act = \"gelu_new\"", "silu | gelu | relu"}},
  };
  for (const Case& c : cases) expect_message(refusal(v3_of_transformers_5(), c.changes), c.parts);
}

// A message is one line of moderate length, whatever the value.
// As deep as read_json_file lets it be.
json lists_in_lists(int depth) {
  json inner = json::array();
  for (int i = 0; i < depth; ++i) {
    json outer = json::array();
    outer.push_back(std::move(inner));
    inner = std::move(outer);
  }
  return inner;
}

TEST(ConfigJson, ShowsHugeValuesInShort) {
  json source = v3_of_transformers_5();
  for (const char* key : {"hidden_size", "eos_token_id", "unheard_of", "rope_parameters", "model_type", "head_dim"}) {
    source[key] = lists_in_lists(100);
    expect_message(message_of([&] { read(source); }), {key, "a list"});
    source[key] = std::string(1 << 20, 'x');
    EXPECT_LT(message_of([&] { read(source); }).size(), 1000U) << key;
    source = v3_of_transformers_5();
  }
  source[std::string(1 << 20, 'k')] = 1;
  EXPECT_LT(message_of([&] { read(source); }).size(), 1000U);
}

TEST(ConfigJson, KeysLeftOutAreThoseOfTransformers) {
  const json shortest = {{"model_type", "deepseek_v3"}, {"hidden_size", 48},      {"intermediate_size", 64},
                         {"num_attention_heads", 4},    {"num_hidden_layers", 4}, {"vocab_size", 256}};
  const ModelConfig v3 = read(shortest);
  EXPECT_EQ(v3.n_routed_experts, 256);
  EXPECT_EQ(v3.num_experts_per_tok, 8);
  EXPECT_EQ(v3.moe_intermediate_size, 2048);
  EXPECT_EQ(v3.first_k_dense_replace, 3);
  EXPECT_THAT(end_tokens(v3), ElementsAre(1));
  json source = shortest;
  source["model_type"] = "deepseek_v2";
  expect_message(message_of([&] { read(source); }), {"num_experts_per_tok = 0"});  // it has no default there either
  source["num_experts_per_tok"] = 2;
  EXPECT_EQ(read(source).n_routed_experts, 64);
}

TEST(ConfigJson, KimiK2IsDeepSeekV3) {
  json source = v3_of_transformers_5();
  source["model_type"] = "kimi_k2";
  ModelConfig v3 = read(v3_of_transformers_5());
  v3.model_type = "kimi_k2";
  EXPECT_EQ(read(source), v3);
  EXPECT_EQ(to_json(v3)["model_type"], "kimi_k2");
  EXPECT_EQ(to_json(v3)["architectures"], json({"DeepseekV3ForCausalLM"}));
}

// The published gate of V2: weights over their sum, or else times the factor. That of V3 does both.
TEST(ConfigJson, TheGateOfV2DividesOrScales) {
  json source = v2_of_transformers_5();
  source["routed_scaling_factor"] = 16.0;
  EXPECT_EQ(router_options(read(source)).weights.scale, 16.0);
  source["norm_topk_prob"] = true;
  EXPECT_EQ(router_options(read(source)).weights.scale, 1.0);
  source["num_experts_per_tok"] = 1;
  EXPECT_EQ(router_options(read(source)).weights.scale, 16.0);
  EXPECT_EQ(router_options(read(v3_of_transformers_5())).weights.scale, 2.5);
}

// An exchange changes nothing that the model computes.
TEST(ConfigJson, NamesThePluginOfARouterAndNoneOfAnExchange) {
  ModelConfig config = read(v3_of_transformers_5());
  const json built_in = to_json(config);
  config.router.select.plugin = "/lib/own.so";
  EXPECT_EQ(to_json(config), built_in);
  EXPECT_EQ(keys_beyond_class(config), std::vector<std::string>());
  config.router.select.rule = SelectRule::plugin;
  EXPECT_EQ(to_json(config)["plugin"], "/lib/own.so");
  EXPECT_EQ(to_json(config)["model_type"], "cadre_deepseek_v3");
  EXPECT_THAT(keys_beyond_class(config), ElementsAre("router", "plugin"));
}

TEST(ConfigJson, DeepSeeksNameStandsOnlyOverWhatItsClassesCompute) {
  const ModelConfig v3 = read(v3_of_transformers_5());
  const ModelConfig v2 = read(v2_of_transformers_5());
  EXPECT_EQ(to_json(v3)["architectures"], json({"DeepseekV3ForCausalLM"}));
  EXPECT_EQ(to_json(v2)["architectures"], json({"DeepseekV2ForCausalLM"}));
  struct Case {
    const char* key;
    ModelConfig base;
    std::function<void(ModelConfig&)> change;
  };
  const Case cases[] = {
      {"scoring_func", v3, [](ModelConfig& c) { c.scoring_func = ScoreFunction::softmax; }},
      {"topk_method", v3, [](ModelConfig& c) { c.topk_method = TopkMethod::greedy; }},
      {"topk_method", v2, [](ModelConfig& c) { c.topk_method = TopkMethod::noaux_tc; }},
      {"norm_topk_prob", v2, [](ModelConfig& c) { c.norm_topk_prob = true; }},
      {"norm_topk_prob", v3, [](ModelConfig& c) { c.num_experts_per_tok = 1; }},
      {"rope_interleave", v2, [](ModelConfig& c) { c.rope_interleave = false; }},
      {"norm", v3, [](ModelConfig& c) { c.norm = "layernorm"; }},
      {"ffn_gate", v3, [](ModelConfig& c) { c.ffn_gate = false; }},
      {"moe_layer_freq", v3, [](ModelConfig& c) { c.moe_layer_freq = 2; }},
      {"n_group", v3, [](ModelConfig& c) { c.n_group = 8, c.topk_group = 4; }},
      {"n_routed_experts", v3, [](ModelConfig& c) { c.n_routed_experts = 0; }},
      {"router", v3, [](ModelConfig& c) { c.router.select.rule = SelectRule::expert_choice; }},
      {"router_gate", v3, [](ModelConfig& c) { c.router.weights.gate = GateKind::binary; }},
      {"router_top_p", v3, [](ModelConfig& c) { c.router.select.top_p = 0.9; }},
      {"dead_experts", v3,
       [](ModelConfig& c) {
         c.router.dead_experts = {3, 4};
       }},
      {"task_bias", v3, [](ModelConfig& c) { c.router.bias.task = 0.2; }},
      {"expert_kinds", v3, [](ModelConfig& c) { c.expert_kinds = ExpertKinds::mixture; }},
      {"shared_expert_mean", v3, [](ModelConfig& c) { c.shared_expert_mean = true; }},
      {"norm_position", v3, [](ModelConfig& c) { c.norm_position = NormPosition::post; }},
      {"ffn_highway", v3, [](ModelConfig& c) { c.ffn_highway = true; }},
  };
  for (const Case& c : cases) {
    ModelConfig config = c.base;
    c.change(config);
    EXPECT_THAT(keys_beyond_class(config), ElementsAre(HasSubstr(c.key))) << c.key;
    const json written = to_json(config);
    EXPECT_EQ(written["architectures"], json({"CadreForCausalLM"})) << c.key;
    EXPECT_EQ(written["model_type"], "cadre_" + config.model_type) << c.key;
    EXPECT_EQ(read(json::parse(written.dump())), config) << c.key;
  }
  ModelConfig trained = v3;
  trained.router.losses.z = 0.1;
  trained.router.losses.kl = 0.1;
  trained.router.capacity.factor = 1.5;
  trained.router.losses.by_sequence = true;
  trained.router.scorer.jitter = 0.01;
  trained.attention_bias = true;
  trained.hidden_act = "gelu";
  EXPECT_EQ(keys_beyond_class(trained), std::vector<std::string>());
}

}  // namespace
}  // namespace cadre::config_json_test
