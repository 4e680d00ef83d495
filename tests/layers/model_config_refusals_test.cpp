// SPDX-License-Identifier: Apache-2.0
// Every refusal of a model configuration, with its key and value.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <limits>

#include "layers/model/config.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/model_configs.hpp"

namespace cadre::model_config_refusals_test {
namespace {

using nlohmann::json;
using test::deepseek_moe_16b;
using test::deepseek_v3;
using test::expect_message;
using test::message_of;
using test::small_mixture;

// One line each, which names the key and what is allowed.
TEST(ModelConfig, AnUnknownNameOfAnyKeyIsRefused) {
  ModelConfig known = small_mixture();
  int num_keys = 0;
  for (const Field& field : fields_of(known)) {
    if (field.allowed.choices.empty() || field.name.starts_with("rope_scaling.")) continue;
    ++num_keys;
    json source = to_json(small_mixture());
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
  ModelConfig c = small_mixture();
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
  EXPECT_EQ(c, small_mixture());
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
  json source = to_json(small_mixture());
  source["model_type"] = "a\nb\x1b[2J";
  expect_message(message_of([&] { model_config_from_json(source, "config.json"); }), {"a\\x0ab\\x1b[2J"});
}

TEST(ModelConfig, ChecksCombinations) {
  EXPECT_NO_THROW(check(small_mixture()));
  const auto with = [](auto&& change) {
    return message_of([&] {
      ModelConfig config = small_mixture();
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
  ModelConfig all_experts = small_mixture();
  all_experts.first_k_dense_replace = 0;
  all_experts.intermediate_size = 0;
  EXPECT_NO_THROW(check(all_experts));
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

}  // namespace
}  // namespace cadre::model_config_refusals_test
