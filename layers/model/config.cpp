// SPDX-License-Identifier: Apache-2.0
#include "layers/model/config.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <string_view>

#include "comm/base/check.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

using nlohmann::json;

// Keys of a config.json that change nothing here.
constexpr std::array<std::string_view, 11> kIgnoredKeys = {
    "_name_or_path", "architectures",        "auto_map",     "dtype",
    "ep_size",       "output_router_logits", "pad_token_id", "pretraining_tp",
    "torch_dtype",   "transformers_version", "use_cache"};

// A config.json must say these; everything else has the default of the architecture.
constexpr std::array<std::string_view, 5> kRequiredKeys = {"hidden_size", "intermediate_size", "num_attention_heads",
                                                           "num_hidden_layers", "vocab_size"};

// Keys that are understood, but only with one value.
json fixed_keys() { return {{"attention_bias", false}, {"attention_dropout", 0.0}, {"rope_scaling", nullptr}}; }

FieldValue value_of_json(const json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
}

// The error for a key that no table knows.
[[noreturn]] void refuse_key(const std::string& key, const std::vector<Field>& fields, const std::string& where) {
  std::vector<std::string> known;
  for (const Field& field : fields) known.push_back(field.name);
  throw Error(ErrorKind::input, fmt::format("{}: unknown key {}", where, key),
              nearest_name_hint(key, known) + "; delete a key that does not change the model");
}

void read_key(const std::string& key, const json& value, const std::vector<Field>& fields, const std::string& where) {
  const json fixed = fixed_keys();
  if (const auto it = fixed.find(key); it != fixed.end()) {
    CADRE_CHECK(value.is_null() || value == *it,
                fmt::format("{}: {} = {}, allowed: {}", where, key, value.dump(), it->dump()),
                "Cadre does not compute this variant");
    return;
  }
  if (std::ranges::find(kIgnoredKeys, key) != kIgnoredKeys.end()) return;
  const auto field = std::ranges::find(fields, key, &Field::name);
  if (field == fields.end()) refuse_key(key, fields, where);
  if (value.is_null()) return;
  CADRE_CHECK(!value.is_structured(),
              fmt::format("{}: {} = {}, allowed: {}", where, key, value.dump(), allowed_text(*field)), field->help);
  assign(*field, value_of_json(value), where + ": ");
}

void check_attention(const ModelConfig& c) {
  CADRE_CHECK(c.hidden_size % c.num_attention_heads == 0 && head_dim(c) % 2 == 0,
              fmt::format("model.num_attention_heads = {}, allowed: hidden_size = {} divided by it is an even integer",
                          c.num_attention_heads, c.hidden_size),
              "RoPE turns pairs of elements of a head");
  CADRE_CHECK(c.num_key_value_heads >= 1 && c.num_attention_heads % c.num_key_value_heads == 0,
              fmt::format("model.num_key_value_heads = {}, allowed: a divisor of num_attention_heads = {}",
                          c.num_key_value_heads, c.num_attention_heads),
              "each key/value head serves the same number of query heads");
}

void check_experts(const ModelConfig& c) {
  CADRE_CHECK(c.num_experts_per_tok >= 1 && c.num_experts_per_tok <= c.n_routed_experts,
              fmt::format("model.num_experts_per_tok = {}, allowed: integer in [1, n_routed_experts = {}]",
                          c.num_experts_per_tok, c.n_routed_experts),
              "a token cannot visit an expert twice");
  CADRE_CHECK(c.moe_intermediate_size >= 1,
              fmt::format("model.moe_intermediate_size = {}, allowed: integer >= 1", c.moe_intermediate_size),
              "needed because n_routed_experts is not 0");
  CADRE_CHECK(
      c.n_routed_experts % c.n_group == 0,
      fmt::format("model.n_group = {}, allowed: a divisor of n_routed_experts = {}", c.n_group, c.n_routed_experts),
      "groups are equally large");
  CADRE_CHECK(c.topk_group <= c.n_group,
              fmt::format("model.topk_group = {}, allowed: integer in [1, n_group = {}]", c.topk_group, c.n_group),
              "the groups that a token may choose from");
  CADRE_CHECK(
      c.num_experts_per_tok <= c.n_routed_experts / c.n_group * c.topk_group,
      fmt::format("model.num_experts_per_tok = {}, allowed: integer in [1, {}], the experts of topk_group = {} groups",
                  c.num_experts_per_tok, c.n_routed_experts / c.n_group * c.topk_group, c.topk_group),
      "raise topk_group");
  CADRE_CHECK(c.first_k_dense_replace <= c.num_hidden_layers,
              fmt::format("model.first_k_dense_replace = {}, allowed: integer in [0, num_hidden_layers = {}]",
                          c.first_k_dense_replace, c.num_hidden_layers),
              "the number of dense layers before the first layer with experts");
  check_router(c);
}

// Also one that stands behind a mixture.
bool has_dense_layer(const ModelConfig& config) {
  if (config.routing.ffn_highway) return true;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!is_moe_layer(config, layer)) return true;
  }
  return false;
}

// Weights of one layer that take part in products: all of them, and those one token meets.
struct LayerWeights {
  int64_t total = 0;
  int64_t active = 0;
};

LayerWeights layer_weights(const ModelConfig& c, int64_t layer) {
  const int64_t ffn_matrices = is_gated(c) ? 3 : 2;
  const int64_t attention = 2 * c.hidden_size * head_dim(c) * (c.num_attention_heads + c.num_key_value_heads);
  const int64_t highway = c.routing.ffn_highway ? c.hidden_size * c.hidden_size : 0;
  const int64_t ffn = highway + ffn_matrices * c.hidden_size * c.intermediate_size;
  if (!is_moe_layer(c, layer)) {
    const int64_t dense = attention + ffn;
    return {dense, dense};
  }
  const int64_t expert = ffn_matrices * c.hidden_size * c.moe_intermediate_size;
  const int64_t always = attention + router_weights(c) + c.n_shared_experts * expert + (highway > 0 ? ffn : 0);
  return {always + c.n_routed_experts * expert, always + c.num_experts_per_tok * expert};
}

// Elements that no product touches: norms and the buffers of routers.
int64_t count_vectors(const ModelConfig& c) {
  const int64_t norm = c.norm == "layernorm" ? 2 * c.hidden_size : c.hidden_size;
  int64_t count = (2 * c.num_hidden_layers + 1) * norm;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    if (is_moe_layer(c, layer)) count += router_buffers(c);
  }
  return count;
}

}  // namespace

std::vector<Field> fields_of(ModelConfig& c) {
  std::vector<Field> fields = {
      {"model_type", &c.model_type, one_of({"deepseek"}), "the architecture, as Hugging Face names it"},
      {"vocab_size", &c.vocab_size, between(1, 0x7fffffff), "tokens in the vocabulary; 256 for bytes"},
      {"hidden_size", &c.hidden_size, at_least(1), "width of the residual stream"},
      {"num_hidden_layers", &c.num_hidden_layers, at_least(1), "layers, dense and with experts"},
      {"max_position_embeddings", &c.max_position_embeddings, at_least(1), "longest sequence"},
      {"initializer_range", &c.initializer_range, at_least(0), "standard deviation of fresh weights"},
      {"tie_word_embeddings", &c.tie_word_embeddings, any(), "only false: lm_head has its own weight"},
      {"bos_token_id", &c.bos_token_id, at_least(-1), "token that begins a text; -1 for none"},
      {"eos_token_id", &c.eos_token_id, at_least(-1), "token that ends a text; -1 for none"},
      {"num_attention_heads", &c.num_attention_heads, at_least(1), "query heads"},
      {"num_key_value_heads", &c.num_key_value_heads, at_least(0), "key and value heads; 0 for one per query head"},
      {"rope_theta", &c.rope_theta, more_than(0), "base of the rotary frequencies"},
      {"norm", &c.norm, one_of({"rmsnorm", "layernorm"}), "normalisation before each block"},
      {"rms_norm_eps", &c.rms_norm_eps, more_than(0), "epsilon of the normalisation"},
      {"hidden_act", &c.hidden_act, one_of({"silu", "gelu", "relu"}), "silu is SwiGLU; gelu and relu have no gate"},
      {"intermediate_size", &c.intermediate_size, at_least(0), "inner width of a dense layer"},
      {"n_routed_experts", &c.n_routed_experts, between(0, 1 << 20), "experts of a layer; 0 for dense layers only"},
      {"num_experts_per_tok", &c.num_experts_per_tok, between(0, 1 << 20), "experts that a token visits (top-k)"},
      {"n_shared_experts", &c.n_shared_experts, at_least(0), "experts that every token visits"},
      {"moe_intermediate_size", &c.moe_intermediate_size, at_least(0), "inner width of one expert"},
      {"first_k_dense_replace", &c.first_k_dense_replace, at_least(0), "the first layers, without experts"},
      {"moe_layer_freq", &c.moe_layer_freq, at_least(1), "after those, every n-th layer has experts"},
      {"scoring_func", &c.scoring_func, one_of({"softmax", "sigmoid"}), "router logits to scores"},
      {"topk_method", &c.topk_method, one_of({"greedy", "group_limited_greedy", "noaux_tc"}),
       "noaux_tc adds a learned bias to select"},
      {"n_group", &c.n_group, at_least(1), "groups of neighbouring experts, as many as hosts to limit traffic"},
      {"topk_group", &c.topk_group, at_least(1), "groups that the experts of a token may be in"},
      {"bias_update_rate", &c.bias_update_rate, at_least(0), "step of that bias, against the load"},
      {"norm_topk_prob", &c.norm_topk_prob, any(), "divide the chosen scores by their sum"},
      {"routed_scaling_factor", &c.routed_scaling_factor, more_than(0), "factor of the routed experts' output"},
      {"aux_loss_alpha", &c.aux_loss_alpha, at_least(0), "weight of the balance loss (Fedus et al. 2021)"},
  };
  append_fields(c.routing, fields);
  return fields;
}

void fill_defaults(ModelConfig& config) {
  if (config.num_key_value_heads == 0) config.num_key_value_heads = config.num_attention_heads;
}

ModelConfig model_config_from_json(const json& source, const std::string& where) {
  CADRE_CHECK(source.is_object(), fmt::format("{}: not a JSON object", where), "expected a Hugging Face config.json");
  ModelConfig config;
  const std::vector<Field> fields = fields_of(config);
  // First, so that the keys of another architecture are not blamed.
  if (source.contains("model_type")) read_key("model_type", source["model_type"], fields, where);
  for (const std::string_view key : kRequiredKeys) {
    CADRE_CHECK(source.contains(std::string(key)), fmt::format("{}: key {} is missing", where, key),
                "expected a Hugging Face config.json");
  }
  for (const auto& [key, value] : source.items()) read_key(key, value, fields, where);
  fill_defaults(config);
  check(config);
  return config;
}

json to_json(const ModelConfig& config) {
  json out = fixed_keys();
  out["architectures"] = {"DeepseekForCausalLM"};
  out["torch_dtype"] = "float32";
  out["use_cache"] = true;
  ModelConfig copy = config;
  for (const Field& field : fields_of(copy)) {
    std::visit([&](const auto& value) { out[field.name] = value; }, value_of(field));
  }
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (out[key] == -1) out[key] = nullptr;
  }
  return out;
}

void check(const ModelConfig& config) {
  ModelConfig copy = config;
  check_ranges(fields_of(copy), "model.");
  CADRE_CHECK(!config.tie_word_embeddings, "model.tie_word_embeddings = true, allowed: false",
              "lm_head.weight is a tensor of its own");
  for (const int64_t token : {config.bos_token_id, config.eos_token_id}) {
    CADRE_CHECK(token < config.vocab_size,
                fmt::format("model.bos_token_id or eos_token_id = {}, allowed: integer in [-1, vocab_size = {})", token,
                            config.vocab_size),
                "-1 for none");
  }
  check_attention(config);
  if (config.n_routed_experts > 0) check_experts(config);
  CADRE_CHECK(config.intermediate_size >= 1 || !has_dense_layer(config),
              fmt::format("model.intermediate_size = {}, allowed: integer >= 1", config.intermediate_size),
              "some layers are dense: see first_k_dense_replace, moe_layer_freq and n_routed_experts");
}

bool is_moe_layer(const ModelConfig& config, int64_t layer) {
  return config.n_routed_experts > 0 && layer >= config.first_k_dense_replace && layer % config.moe_layer_freq == 0;
}

ParameterCount count_parameters(const ModelConfig& config) {
  const int64_t embedding = config.vocab_size * config.hidden_size;
  const int64_t shared = 2 * embedding + count_vectors(config);
  ParameterCount count{shared, shared, embedding};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const LayerWeights weights = layer_weights(config, layer);
    count.total += weights.total;
    count.active += weights.active;
  }
  return count;
}

double flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  const ParameterCount count = count_parameters(config);
  const auto multiplied = static_cast<double>(count.active - count.embedding - count_vectors(config));
  const auto attended =
      static_cast<double>(config.num_hidden_layers * config.hidden_size) * static_cast<double>(sequence_length + 1);
  return 6.0 * multiplied + 6.0 * attended;
}

}  // namespace cadre
