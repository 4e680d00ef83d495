// SPDX-License-Identifier: Apache-2.0
// Reading and writing config.json, every refusal with its key and value, and counts against published models.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "layers/model/config.hpp"
#include "tests/support/messages.hpp"

namespace cadre {
namespace {

using test::expect_message;
using test::message_of;

using nlohmann::json;

// DeepSeekMoE 16B as published: shape keys, and keys that Cadre has no use for.
json deepseek_moe_16b() {
  return json::parse(R"({
    "architectures": ["DeepseekForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 10944,
    "max_position_embeddings": 4096, "model_type": "deepseek", "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 28, "num_key_value_heads": 16, "pretraining_tp": 1,
    "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000, "scoring_func": "softmax", "seq_aux": true,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
    "vocab_size": 102400})");
}

ModelConfig small() {
  ModelConfig config;
  config.hidden_size = 64;
  config.num_hidden_layers = 4;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.intermediate_size = 96;
  config.n_routed_experts = 6;
  config.num_experts_per_tok = 2;
  config.n_shared_experts = 1;
  config.moe_intermediate_size = 32;
  config.first_k_dense_replace = 1;
  return config;
}

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
  ModelConfig config = small();
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

// One line each, which names the key and what is allowed.
TEST(ModelConfig, AnUnknownNameOfAnyKeyIsRefused) {
  ModelConfig known = small();
  int num_keys = 0;
  for (const Field& field : fields_of(known)) {
    if (field.allowed.choices.empty() || field.name.starts_with("rope_scaling.")) continue;
    ++num_keys;
    json source = to_json(small());
    source[field.name] = "oracle";
    const std::string message = message_of([&] { model_config_from_json(source, "config.json"); });
    expect_message(message, {"config.json: ", "oracle", allowed_text(field).c_str()});
    EXPECT_EQ(std::ranges::count(message, '\n'), 0) << message;
    const FieldValue before = value_of(field);
    expect_message(message_of([&] { set_key(known, field.name, "oracle"); }),
                   {fmt::format("model.{} = \"oracle\", allowed: {}", field.name, allowed_text(field)).c_str()});
    EXPECT_EQ(value_of(field), before) << field.name;
    for (const std::string& choice : field.allowed.choices) {
      set_key(known, field.name, choice);
      EXPECT_EQ(key_text(known, field.name), choice);
    }
  }
  EXPECT_EQ(num_keys, 16);
}

// Text that a list or a condition cannot be.
TEST(ModelConfig, RefusesListsThatAreNone) {
  ModelConfig c = small();
  for (const auto& [key, text] : {std::pair{"dead_experts", "1;2"},
                                  {"dead_experts", "-1"},
                                  {"expert_tasks", "0,1,two"},
                                  {"task_top_k", "0"},
                                  {"router_hidden_sizes", "7,,5"},
                                  {"expert_conditions", "1:mood=2"},
                                  {"expert_conditions", "task=2"},
                                  {"expert_conditions", "1:position<"}}) {
    expect_message(message_of([&] { set_key(c, key, text); }),
                   {fmt::format("model.{} = \"{}\", allowed: ", key, text).c_str()});
  }
  EXPECT_EQ(c, small());
  set_key(c, "expert_conditions", "1:task=2,0:position<16,0:position>=4");
  EXPECT_EQ(key_text(c, "expert_conditions"), "1:task=2,0:position<16,0:position>=4");
}

TEST(ModelConfig, RefusesJson) {
  struct Case {
    const char* key;
    json value;
    std::initializer_list<const char*> parts;
  };
  const Case cases[] = {
      {"model_type", "llama", {"config.json: model_type = \"llama\"", "deepseek | deepseek_v2 | deepseek_v3"}},
      {"hidden_size", "wide", {"config.json: hidden_size = \"wide\"", "allowed: integer >= 1"}},
      {"hidden_size", 2048.5, {"hidden_size = 2048.5", "integer >= 1"}},
      {"hidden_size", json::array({1}), {"hidden_size = [1]", "integer >= 1"}},
      {"hidden_act", "swiglu", {"hidden_act = \"swiglu\"", "silu | gelu | relu"}},
      {"rope_theta", 0, {"rope_theta = 0", "number > 0"}},
      {"attention_bias", true, {"attention_bias = true", "allowed: false with model_type deepseek"}},
      {"mlp_bias", true, {"mlp_bias = true", "allowed: false"}},
      {"rope_scaling", "yarn", {"rope_scaling = \"yarn\"", "null or an object"}},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2}}, {"rope_scaling.type = \"linear\"", "none | yarn"}},
      {"rope_scaling",
       {{"type", "yarn"}, {"facter", 2}},
       {"unknown key rope_scaling.facter = 2", "rope_scaling.factor"}},
      {"rope_scaling", {{"factor", 2}}, {"rope_scaling = {\"factor\":2}", "type or rope_type"}},
      {"rope_scaling",
       {{"type", "yarn"}, {"rope_type", "default"}},
       {"rope_scaling.type = \"yarn\"", "rope_type = \"default\""}},
      {"rope_scaling", {{"type", "yarn"}, {"factor", 0.5}}, {"rope_scaling.factor = 0.5", "number >= 1"}},
      {"kv_lora_rank", 8, {"kv_lora_rank = 8", "allowed: 0 with model_type deepseek"}},
      {"n_routed_expert",
       8,
       {"config.json: unknown key n_routed_expert = 8", "the nearest known name is n_routed_experts"}},
      {"num_experts_per_tok", 65, {"num_experts_per_tok = 65", "[1, n_routed_experts = 64]"}},
      {"num_attention_heads", 24, {"num_attention_heads = 24", "hidden_size = 2048"}},
      {"num_key_value_heads", 3, {"num_key_value_heads = 3", "num_attention_heads = 16"}},
      {"eos_token_id", 102400, {"eos_token_id = 102400", "vocab_size = 102400"}},
  };
  for (const Case& c : cases) {
    json source = deepseek_moe_16b();
    source[c.key] = c.value;
    expect_message(message_of([&] { model_config_from_json(source, "config.json"); }), c.parts);
  }
  json incomplete = deepseek_moe_16b();
  incomplete.erase("vocab_size");
  expect_message(message_of([&] { model_config_from_json(incomplete, "a.json"); }),
                 {"a.json: key vocab_size is missing"});
  expect_message(message_of([] { model_config_from_json(json::array(), "a.json"); }), {"a.json: not a JSON object"});
}

// A message is one line whatever the file says.
TEST(ModelConfig, ShowsControlCharacters) {
  json source = to_json(small());
  source["model_type"] = "a\nb\x1b[2J";
  expect_message(message_of([&] { model_config_from_json(source, "config.json"); }), {"a\\x0ab\\x1b[2J"});
}

TEST(ModelConfig, ChecksCombinations) {
  EXPECT_NO_THROW(check(small()));
  const auto with = [](auto&& change) {
    return message_of([&] {
      ModelConfig config = small();
      change(config);
      check(config);
    });
  };
  expect_message(with([](ModelConfig& c) { c.hidden_size = 0; }), {"model.hidden_size = 0", "integer >= 1"});
  expect_message(with([](ModelConfig& c) { c.hidden_size = 60; }), {"num_attention_heads = 4", "even"});  // 15 a head
  expect_message(with([](ModelConfig& c) { c.num_key_value_heads = 0; }), {"num_key_value_heads = 0"});
  // Sizes whose products no integer can count.
  expect_message(with([](ModelConfig& c) { c.hidden_size = int64_t{1} << 61; }),
                 {"model.hidden_size = 2305843009213693952", "up to 2147483647"});
  expect_message(with([](ModelConfig& c) { c.hidden_size = 1 << 30; }), {"parameters", "below 2^60", "hidden_size"});
  expect_message(with([](ModelConfig& c) { c.num_hidden_layers = int64_t{1} << 62; }),
                 {"num_hidden_layers = 4611686018427387904", "[1, 100000]"});
  expect_message(with([](ModelConfig& c) { c.num_experts_per_tok = 0; }), {"num_experts_per_tok = 0", "[1,"});
  expect_message(with([](ModelConfig& c) { c.moe_intermediate_size = 0; }), {"moe_intermediate_size = 0"});
  expect_message(with([](ModelConfig& c) { c.first_k_dense_replace = 5; }), {"first_k_dense_replace = 5", "= 4]"});
  expect_message(with([](ModelConfig& c) { c.intermediate_size = 0; }), {"intermediate_size = 0", "dense"});
  expect_message(with([](ModelConfig& c) { c.aux_loss_alpha = std::numeric_limits<double>::quiet_NaN(); }),
                 {"aux_loss_alpha = nan"});
  expect_message(with([](ModelConfig& c) { c.router.select.rule = SelectRule::dense; }),
                 {"num_experts_per_tok = 2 with router = dense", "n_routed_experts = 6"});
  expect_message(with([](ModelConfig& c) { c.router.losses.load = 0.1; }), {"load_loss_weight = 0.1", "router_noise"});
  expect_message(with([](ModelConfig& c) { c.router.bias.expert_task = {0, 1}; }), {"expert_tasks = \"0,1\"", "6"});
  expect_message(with([](ModelConfig& c) { c.router.dead_experts = {6}; }), {"dead_experts = \"6\"", "[0, 5]"});
  expect_message(with([](ModelConfig& c) { c.router.select.task_top_k = {1, 3}; }), {"task_top_k = \"1,3\"", "[1, 2]"});
  expect_message(with([](ModelConfig& c) { set_key(c, "expert_conditions", "6:task=2"); }),
                 {"expert_conditions = \"6:task=2\"", "[0, 5]"});
  expect_message(with([](ModelConfig& c) { c.router.scorer.two_level = true; }),
                 {"router_two_level = true", "n_group = 1"});
  expect_message(with([](ModelConfig& c) { c.router.eligibility.nodes.kept = 2; }),
                 {"node_count = 1 with node_limit = 2"});
  expect_message(with([](ModelConfig& c) { c.router.losses.device = 0.1; }),
                 {"device_loss_weight = 0.1 with balance_devices = 1", "[2, n_routed_experts = 6]", "one device"});
  expect_message(with([](ModelConfig& c) { c.router.losses.communication = 0.1; }),
                 {"communication_loss_weight = 0.1 with balance_devices = 1"});
  expect_message(with([](ModelConfig& c) { c.router.losses.device_variance = 0.1; }),
                 {"device_variance_weight = 0.1 with balance_devices = 1"});
  expect_message(with([](ModelConfig& c) {
                   c.router.capacity.factor = 1.0;
                   c.router.capacity.tokens = 16;
                 }),
                 {"expert_capacity = 16 with capacity_factor = 1", "one of them is 0"});
  expect_message(with([](ModelConfig& c) { c.expert_kinds = ExpertKinds::projections; }),
                 {"n_routed_experts = 6, num_experts_per_tok = 2 with expert_kinds = projections", "multiples of 3"});
  expect_message(with([](ModelConfig& c) {
                   c.expert_kinds = ExpertKinds::projections;
                   c.num_experts_per_tok = 3;
                   c.router.select.top_p = 0.5;
                 }),
                 {"router_top_p < 1 with expert_kinds = projections"});
  expect_message(with([](ModelConfig& c) { c.router.losses.devices = 7; }),
                 {"balance_devices = 7", "[1, n_routed_experts = 6]"});
  ModelConfig all_experts = small();
  all_experts.first_k_dense_replace = 0;
  all_experts.intermediate_size = 0;
  EXPECT_NO_THROW(check(all_experts));
}

// The released config.json of DeepSeek-V3.
json deepseek_v3() {
  return json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001, "bos_token_id": 0,
    "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128]}, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1,
    "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": true,
    "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "use_cache": true, "v_head_dim": 128, "vocab_size": 129280})");
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

TEST(ModelConfig, RefusesLatentAttentionThatCannotBe) {
  struct Case {
    const char* key;
    json value;
    std::initializer_list<const char*> parts;
  };
  const Case cases[] = {
      {"kv_lora_rank", 0, {"kv_lora_rank = 0", "integer >= 1", "deepseek_v3"}},
      {"qk_rope_head_dim", 63, {"qk_rope_head_dim = 63", "even"}},
      {"v_head_dim", nullptr, {"v_head_dim = 0"}},
      {"num_key_value_heads", 64, {"num_key_value_heads = 64", "num_attention_heads = 128"}},
  };
  for (const Case& c : cases) {
    json source = deepseek_v3();
    source[c.key] = c.value;
    expect_message(message_of([&] { model_config_from_json(source, "config.json"); }), c.parts);
  }
}

TEST(ModelConfig, CountsTheParametersOfDeepSeekV3AsPublished) {
  const ModelConfig config = model_config_from_json(deepseek_v3(), "config.json");
  const ParameterCount count = count_parameters(config);
  EXPECT_EQ(count.total, 671'026'419'200);
  EXPECT_EQ(count.active, 37'552'297'472);
  EXPECT_EQ(count.active - count.embedding, 36'625'618'432);
  // One layer (attention, mixture, two norms), the projection of two rows to one, three norms.
  EXPECT_EQ(count.mtp_modules, 187'107'328 + 11'320'164'608 + 2 * 7168 + 2 * 7168 * 7168 + 3 * 7168);
  // Queries and keys of 192 elements, values of 128, 128 heads, 61 layers.
  const double products = 6.0 * static_cast<double>(count.active - count.embedding);
  const double vectors = 6.0 * (61 * (2 * 7168 + 1536 + 512) + 7168 + 58 * 256);
  EXPECT_DOUBLE_EQ(flops_per_token(config, 4095), products - vectors + 3.0 * 61 * 128 * 320 * 4096);
}

TEST(ModelConfig, CountsTiedTablesOnce) {
  ModelConfig config = small();
  const ParameterCount apart = count_parameters(config);
  config.tie_word_embeddings = true;
  EXPECT_EQ(apart.total - count_parameters(config).total, config.vocab_size * config.hidden_size);
  EXPECT_DOUBLE_EQ(flops_per_token(config, 9), flops_per_token(small(), 9));
}

TEST(ModelConfig, LayerFrequencyCountsFromLayerZero) {
  ModelConfig config = small();
  config.num_hidden_layers = 6;
  config.moe_layer_freq = 2;
  std::string layers;
  for (int64_t layer = 0; layer < 6; ++layer) layers += is_moe_layer(config, layer) ? 'M' : 'd';
  EXPECT_EQ(layers, "ddMdMd");
}

TEST(ModelConfig, CountsTheParametersOfThePublishedModel) {
  const ModelConfig config = model_config_from_json(deepseek_moe_16b(), "config.json");
  const ParameterCount count = count_parameters(config);
  // Two vocabulary tables, 28 layers of four square matrices and two norms, the last norm, one dense FFN, 27 layers of
  // a router and 66 experts. The paper says 16.4B.
  const int64_t moe_layer = 64 * 2048 + int64_t{66} * 3 * 2048 * 1408;
  const int64_t rest = 2 * 102400 * 2048 + 28 * (4 * 2048 * 2048 + 2 * 2048) + 2048 + 3 * 2048 * 10944;
  EXPECT_EQ(count.total, 27 * moe_layer + rest);
  EXPECT_EQ(count.total / 100'000'000, 163);
  EXPECT_EQ(count.embedding, 102400 * 2048);
  // 27 layers of 58 experts of 3 * 2048 * 1408 that a token does not visit.
  EXPECT_EQ(count.total - count.active, int64_t{27} * 58 * 3 * 2048 * 1408);
}

// m times as many experts of an m-th of the width, m times as many of them chosen: the same weights, but for the gate.
TEST(ModelConfig, FineGrainedExpertsCostTheSame) {
  const ParameterCount coarse = count_parameters(small());
  ModelConfig config = small();
  config.n_routed_experts *= 4;
  config.num_experts_per_tok *= 4;
  config.n_shared_experts *= 4;
  config.moe_intermediate_size /= 4;
  const ParameterCount fine = count_parameters(config);
  const int64_t gates = 3 * (24 - 6) * 64;  // three mixture layers
  EXPECT_EQ(fine.total, coarse.total + gates);
  EXPECT_EQ(fine.active, coarse.active + gates);
}

TEST(ModelConfig, CountsWhatRoutersAndBlocksAdd) {
  ModelConfig config = small();
  const ParameterCount plain = count_parameters(config);
  config.router.scorer.hidden_sizes = {12};
  config.router.scorer.noise = true;
  config.router.capacity.factor = 1.0;
  config.router.capacity.kind = CapacityKind::dynamic;
  config.router.bias.expert_task = {0, 1, 2, 3, 1, 0};
  config.router.bias.history = true;
  config.ffn_highway = true;
  // A mixture layer: a gate of 64 to 12 to 6 instead of 64 to 6, noise, a row of capacities, three times five of histories, and the
  // highway with its network; the dense layer has a highway.
  const int64_t gate = 64 * 12 + 12 * 6 - 64 * 6 + 64 * 6;
  const int64_t added = 3 * (gate + 16 * 6 + 64 * 64 + 3 * 64 * 96) + 64 * 64;
  const ParameterCount count = count_parameters(config);
  EXPECT_EQ(count.total - plain.total, added);
  EXPECT_EQ(count.active - plain.active, added);
}

// Six experts of width 32: SwiGLU has 3 * 64 * 32 weights, an up expert 2 * 64 * 64, a down expert 2 * 64 * 16.
TEST(ModelConfig, CountsTypedExperts) {
  ModelConfig config = small();
  const ParameterCount same = count_parameters(config);
  config.expert_kinds = ExpertKinds::typed;
  check(config);
  const int64_t usual = 3 * 64 * 32;
  const int64_t typed = usual + 2 * 64 * 64 + 2 * 64 * 16;  // one of each kind
  EXPECT_EQ(count_parameters(config).total - same.total, 3 * (2 * typed - 6 * usual));
  config.ffn_gate = false;
  expect_message(message_of([&] { check(config); }), {"expert_kinds", "silu"});
}

TEST(ModelConfig, CountsExpertsThatAreMixtures) {
  ModelConfig config = small();
  const ParameterCount same = count_parameters(config);
  config.expert_kinds = ExpertKinds::mixture;
  config.inner_experts = 3;
  config.inner_experts_per_tok = 2;
  check(config);
  const int64_t ffn = 3 * 64 * 32;
  const ParameterCount mixture = count_parameters(config);
  EXPECT_EQ(mixture.total - same.total, 3 * 6 * (3 * 64 + 2 * ffn));
  EXPECT_EQ(mixture.active - same.active, 3 * config.num_experts_per_tok * (3 * 64 + ffn));
  config.inner_experts_per_tok = 4;
  expect_message(message_of([&] { check(config); }), {"inner_experts_per_tok = 4", "inner_experts = 3"});
}

TEST(ModelConfig, CountsEveryVariantByHand) {
  ModelConfig config = small();
  config.num_hidden_layers = 2;
  config.hidden_act = "gelu";
  config.ffn_gate = false;
  config.norm = "layernorm";
  config.topk_method = TopkMethod::noaux_tc;
  // q and o 64 * 64, k and v 64 * 32; two matrices an FFN; weight and bias a norm; one selection bias an expert.
  const int64_t attention = 2 * 64 * 64 + 2 * 64 * 32;
  const int64_t expert = 2 * 64 * 32;
  const int64_t norms = 5 * 2 * 64;
  const int64_t products = 2 * attention + 2 * 64 * 96 + 6 * 64 + (6 + 1) * expert + 64 * 256;
  const ParameterCount count = count_parameters(config);
  EXPECT_EQ(count.total, products + norms + 6 + 64 * 256);
  EXPECT_EQ(count.total - count.active, 4 * expert);
  // Each of 2 layers: 2 * 2 * 64 FLOPs a key forward, three times with backward, (100 + 1) / 2 keys.
  EXPECT_DOUBLE_EQ(flops_per_token(config, 100), 6.0 * (products - 4 * expert) + 2 * 3 * 4 * 64 * 50.5);
}

}  // namespace
}  // namespace cadre
