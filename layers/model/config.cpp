// SPDX-License-Identifier: Apache-2.0
#include "layers/model/config.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

using nlohmann::json;

// Keys that describe the file and not what is computed.
constexpr std::array<std::string_view, 7> kDescriptiveKeys = {
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"};

// Keys that change nothing here. How the weights are quantised is seen from the weights.
constexpr std::array<std::string_view, 10> kUnusedKeys = {
    "ep_size",      "head_dim",       "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "pretraining_tp", "qk_head_dim",       "quantization_config",  "return_dict"};

// A config.json must say these; everything else has the default of the architecture.
constexpr std::array<std::string_view, 5> kRequiredKeys = {"hidden_size", "intermediate_size", "num_attention_heads",
                                                           "num_hidden_layers", "vocab_size"};

// Two names of one object.
constexpr std::array<std::string_view, 2> kRopeKeys = {"rope_scaling", "rope_parameters"};

constexpr std::array<std::string_view, 6> kLatentKeys = {"q_lora_rank",      "kv_lora_rank", "qk_nope_head_dim",
                                                         "qk_rope_head_dim", "v_head_dim",   "rope_interleave"};

// Keys that are understood, but only with one value.
json fixed_keys() { return {{"attention_bias", false}, {"attention_dropout", 0.0}}; }

bool is_one_of(std::span<const std::string_view> keys, std::string_view key) {
  return std::ranges::find(keys, key) != keys.end();
}

// What a config.json of that architecture means by the keys it leaves out.
ModelConfig architecture_defaults(const std::string& model_type) {
  ModelConfig config;
  config.model_type = model_type;
  if (!has_latent_attention(config)) return config;
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  if (model_type == "deepseek_v2") return config;
  config.scoring_func = "sigmoid";
  config.topk_method = "noaux_tc";
  config.n_group = 8;
  config.topk_group = 4;
  config.norm_topk_prob = true;
  config.routed_scaling_factor = 2.5;
  config.n_shared_experts = 1;
  return config;
}

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

const Field& field_named(const std::vector<Field>& fields, const std::string& name) {
  const auto field = std::ranges::find(fields, name, &Field::name);
  CADRE_ASSERT(field != fields.end());
  return *field;
}

void read_field(const std::string& key, const json& value, const std::vector<Field>& fields, const std::string& where) {
  const auto field = std::ranges::find(fields, key, &Field::name);
  if (field == fields.end()) refuse_key(key, fields, where);
  if (value.is_null()) {
    // Not what the architecture has when the key is left out: q_lora_rank null is no latent query.
    ModelConfig none;
    return assign(*field, value_of(field_named(fields_of(none), key)), where + ": ");
  }
  CADRE_CHECK(!value.is_structured(),
              fmt::format("{}: {} = {}, allowed: {}", where, key, value.dump(), allowed_text(*field)), field->help);
  assign(*field, value_of_json(value), where + ": ");
}

// `key` is the name that the object has in the file.
void read_rope(const std::string& key, const json& object, const std::vector<Field>& fields, const std::string& where) {
  CADRE_CHECK(object.is_object(), fmt::format("{}: {} = {}, allowed: null or an object", where, key, object.dump()),
              "with type yarn, factor and so on");
  CADRE_CHECK(object.empty() || object.contains("type") || object.contains("rope_type"),
              fmt::format("{}: {} has no type, allowed: yarn | default", where, key), "the key may also be rope_type");
  if (object.contains("type") && object.contains("rope_type")) {
    CADRE_CHECK(object["type"] == object["rope_type"],
                fmt::format("{}: {}.type = {}, rope_type = {}, allowed: the same", where, key, object["type"].dump(),
                            object["rope_type"].dump()),
                "two names of one key");
  }
  for (const auto& [name, value] : object.items()) {
    if (name == "type" || name == "rope_type") {
      read_field("rope_scaling.type", value == "default" ? json("none") : value, fields, where);
    } else if (name == "rope_theta") {
      read_field(name, value, fields, where);
    } else {
      read_field("rope_scaling." + name, value, fields, where);
    }
  }
}

void read_key(const std::string& key, const json& value, const std::vector<Field>& fields, const std::string& where,
              std::vector<std::string>* unused) {
  const json fixed = fixed_keys();
  if (const auto it = fixed.find(key); it != fixed.end()) {
    CADRE_CHECK(value.is_null() || value == *it,
                fmt::format("{}: {} = {}, allowed: {}", where, key, value.dump(), it->dump()),
                "Cadre does not compute this variant");
    return;
  }
  if (is_one_of(kDescriptiveKeys, key)) return;
  if (is_one_of(kUnusedKeys, key)) {
    if (unused != nullptr) unused->push_back(key);
    return;
  }
  if (!is_one_of(kRopeKeys, key)) return read_field(key, value, fields, where);
  if (!value.is_null()) read_rope(key, value, fields, where);
}

void check_multi_head_attention(const ModelConfig& c) {
  CADRE_CHECK(c.hidden_size % c.num_attention_heads == 0 && head_dim(c) % 2 == 0,
              fmt::format("model.num_attention_heads = {}, allowed: hidden_size = {} divided by it is an even integer",
                          c.num_attention_heads, c.hidden_size),
              "RoPE turns pairs of elements of a head");
  CADRE_CHECK(c.num_key_value_heads >= 1 && c.num_attention_heads % c.num_key_value_heads == 0,
              fmt::format("model.num_key_value_heads = {}, allowed: a divisor of num_attention_heads = {}",
                          c.num_key_value_heads, c.num_attention_heads),
              "each key/value head serves the same number of query heads");
  const ModelConfig none;
  CADRE_CHECK(c.kv_lora_rank == none.kv_lora_rank && c.q_lora_rank == none.q_lora_rank,
              fmt::format("model.kv_lora_rank = {}, q_lora_rank = {}, allowed: 0 with model_type deepseek",
                          c.kv_lora_rank, c.q_lora_rank),
              "latent attention is that of deepseek_v2 and deepseek_v3");
}

void check_latent_attention(const ModelConfig& c) {
  const std::pair<const char*, int64_t> sizes[] = {{"kv_lora_rank", c.kv_lora_rank},
                                                   {"qk_nope_head_dim", c.qk_nope_head_dim},
                                                   {"qk_rope_head_dim", c.qk_rope_head_dim},
                                                   {"v_head_dim", c.v_head_dim}};
  for (const auto& [name, size] : sizes) {
    CADRE_CHECK(size >= 1,
                fmt::format("model.{} = {}, allowed: integer >= 1 with model_type {}", name, size, c.model_type),
                "a size of latent attention");
  }
  CADRE_CHECK(c.qk_rope_head_dim % 2 == 0,
              fmt::format("model.qk_rope_head_dim = {}, allowed: an even integer", c.qk_rope_head_dim),
              "RoPE turns pairs of elements");
  CADRE_CHECK(c.num_key_value_heads == c.num_attention_heads,
              fmt::format("model.num_key_value_heads = {}, allowed: num_attention_heads = {}", c.num_key_value_heads,
                          c.num_attention_heads),
              "in latent attention every head has keys and values of its own");
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
// Sizes whose products would not fit the integers that count them. The bound is generous: each weight of a layer is among
// the elements of a square or of a product here.
void check_size(const ModelConfig& c, const std::vector<Field>& fields) {
  constexpr int64_t kLargest = 0x7fffffff;
  for (const Field& field : fields) {
    const FieldValue value = value_of(field);
    const auto* integer = std::get_if<int64_t>(&value);
    CADRE_CHECK(integer == nullptr || *integer <= kLargest,
                fmt::format("model.{} = {}, allowed: integer up to {}", field.name, *integer, kLargest), field.help);
  }
  const auto real = [](int64_t size) { return static_cast<double>(size); };
  const double hidden = real(c.hidden_size);
  const double heads = real(c.num_attention_heads) * real(c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim);
  const double attention = hidden + real(c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim) + heads;
  const double inner = c.routing.expert_kinds == "mixture" ? real(c.routing.inner_experts) : 1.0;
  const double experts = inner * real(c.n_routed_experts) + real(c.n_shared_experts + 1);
  const double ffn = hidden * (real(c.intermediate_size) + experts * (real(c.moe_intermediate_size) + 2.0));
  const double tables = 2.0 * real(1 + c.num_nextn_predict_layers) * real(c.vocab_size) * hidden;
  const double elements =
      tables + real(c.num_hidden_layers + c.num_nextn_predict_layers) * 4.0 * (attention * attention + ffn);
  CADRE_CHECK(elements < 0x1p60, fmt::format("the model has up to {:.2g} parameters, allowed: below 2^60", elements),
              "one of hidden_size, num_hidden_layers, n_routed_experts and the other sizes is far too large");
}

bool has_dense_layer(const ModelConfig& config) {
  if (config.routing.ffn_highway) return true;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!is_moe_layer(config, layer)) return true;
  }
  return false;
}

// Elements of the matrices of one layer's attention.
int64_t attention_weights(const ModelConfig& c) {
  if (!has_latent_attention(c)) {
    return 2 * c.hidden_size * head_dim(c) * (c.num_attention_heads + c.num_key_value_heads);
  }
  const int64_t heads = c.num_attention_heads;
  const int64_t query = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim);
  const int64_t queries = c.q_lora_rank > 0 ? (c.hidden_size + query) * c.q_lora_rank : c.hidden_size * query;
  return queries + c.hidden_size * (c.kv_lora_rank + c.qk_rope_head_dim) +
         c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim) + heads * c.v_head_dim * c.hidden_size;
}

// Elements of a query and of a value, all heads together: what a key costs.
int64_t attended_width(const ModelConfig& c) {
  if (!has_latent_attention(c)) return 2 * c.hidden_size;
  return c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim);
}

// Weights of one layer that take part in products: all of them, and those one token meets.
struct LayerWeights {
  int64_t total = 0;
  int64_t active = 0;
};

LayerWeights layer_weights(const ModelConfig& c, int64_t layer) {
  const int64_t ffn_matrices = is_gated(c) ? 3 : 2;
  const int64_t attention = attention_weights(c);
  const int64_t highway = c.routing.ffn_highway ? c.hidden_size * c.hidden_size : 0;
  const int64_t ffn = highway + ffn_matrices * c.hidden_size * c.intermediate_size;
  if (!is_moe_layer(c, layer)) {
    const int64_t dense = attention + ffn;
    return {dense, dense};
  }
  const int64_t expert = ffn_matrices * c.hidden_size * c.moe_intermediate_size;
  const int64_t always = attention + router_weights(c) + c.n_shared_experts * expert + (highway > 0 ? ffn : 0);
  const ExpertWeights routed = routed_expert_weights(c);
  return {always + routed.total, always + c.num_experts_per_tok * routed.active / c.n_routed_experts};
}

int64_t norm_elements(const ModelConfig& c) { return c.norm == "layernorm" ? 2 * c.hidden_size : c.hidden_size; }

// Elements of one layer that no product touches: norms and the buffers of a router.
int64_t layer_vectors(const ModelConfig& c, int64_t layer) {
  int64_t count = 2 * norm_elements(c);
  if (has_latent_attention(c)) count += c.kv_lora_rank + c.q_lora_rank;
  if (is_moe_layer(c, layer)) count += router_buffers(c);
  return count;
}

int64_t count_vectors(const ModelConfig& c) {
  int64_t count = norm_elements(c);
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) count += layer_vectors(c, layer);
  return count;
}

}  // namespace

std::vector<Field> fields_of(ModelConfig& c) {
  std::vector<Field> fields = {
      {"model_type", &c.model_type, one_of({"deepseek", "deepseek_v2", "deepseek_v3"}),
       "the architecture, as Hugging Face names it"},
      {"vocab_size", &c.vocab_size, between(1, 0x7fffffff), "tokens in the vocabulary; 256 for bytes"},
      {"hidden_size", &c.hidden_size, at_least(1), "width of the residual stream"},
      {"num_hidden_layers", &c.num_hidden_layers, between(1, 100'000), "layers, dense and with experts"},
      {"max_position_embeddings", &c.max_position_embeddings, at_least(1), "longest sequence"},
      {"initializer_range", &c.initializer_range, at_least(0), "standard deviation of fresh weights"},
      {"tie_word_embeddings", &c.tie_word_embeddings, any(), "lm_head is the embedding table"},
      {"bos_token_id", &c.bos_token_id, at_least(-1), "token that begins a text; -1 for none"},
      {"eos_token_id", &c.eos_token_id, at_least(-1), "token that ends a text; -1 for none"},
      {"num_attention_heads", &c.num_attention_heads, at_least(1), "query heads"},
      {"num_key_value_heads", &c.num_key_value_heads, at_least(0), "key and value heads; 0 for one per query head"},
      {"rope_theta", &c.rope_theta, more_than(0), "base of the rotary frequencies"},
      {"rope_scaling.type", &c.rope_scaling.type, one_of({"none", "yarn"}), "how positions are stretched"},
      {"rope_scaling.factor", &c.rope_scaling.factor, more_than(0), "of yarn: how many times longer texts become"},
      {"rope_scaling.beta_fast", &c.rope_scaling.beta_fast, more_than(0), "pairs with more turns keep their frequency"},
      {"rope_scaling.beta_slow", &c.rope_scaling.beta_slow, more_than(0), "pairs with fewer turns are stretched whole"},
      {"rope_scaling.mscale", &c.rope_scaling.mscale, at_least(0), "m of the factor of turned elements"},
      {"rope_scaling.mscale_all_dim", &c.rope_scaling.mscale_all_dim, at_least(0),
       "m of the softmax scale; 0 for none"},
      {"rope_scaling.original_max_position_embeddings", &c.rope_scaling.original_max_position_embeddings, at_least(1),
       "longest sequence before stretching"},
      {"rope_interleave", &c.rope_interleave, any(), "latent attention: RoPE turns neighbours, not halves"},
      {"q_lora_rank", &c.q_lora_rank, at_least(0), "width of the latent query; 0 for none"},
      {"kv_lora_rank", &c.kv_lora_rank, at_least(0), "width of the latent of keys and values"},
      {"qk_nope_head_dim", &c.qk_nope_head_dim, at_least(0), "elements of a latent query that do not turn"},
      {"qk_rope_head_dim", &c.qk_rope_head_dim, at_least(0), "elements of a latent query that turn"},
      {"v_head_dim", &c.v_head_dim, at_least(0), "elements of a value of latent attention"},
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
      {"num_nextn_predict_layers", &c.num_nextn_predict_layers, between(0, 64), "modules that predict further tokens"},
      {"mtp_loss_factor", &c.mtp_loss_factor, at_least(0), "weight of their mean loss (lambda)"},
  };
  append_fields(c.routing, fields);
  return fields;
}

void fill_defaults(ModelConfig& config) {
  if (config.num_key_value_heads == 0) config.num_key_value_heads = config.num_attention_heads;
}

ModelConfig model_config_from_json(const json& source, const std::string& where, std::vector<std::string>* unused) {
  CADRE_CHECK(source.is_object(), fmt::format("{}: not a JSON object", where), "expected a Hugging Face config.json");
  ModelConfig config;
  const std::vector<Field> fields = fields_of(config);
  // First, so that the keys of another architecture are not blamed.
  if (source.contains("model_type")) read_field("model_type", source["model_type"], fields, where);
  config = architecture_defaults(config.model_type);
  for (const std::string_view key : kRequiredKeys) {
    CADRE_CHECK(source.contains(std::string(key)), fmt::format("{}: key {} is missing", where, key),
                "expected a Hugging Face config.json");
  }
  for (const auto& [key, value] : source.items()) read_key(key, value, fields, where, unused);
  fill_defaults(config);
  check(config);
  return config;
}

json to_json(const ModelConfig& config) {
  json out = fixed_keys();
  const bool latent = has_latent_attention(config);
  const char* version = config.model_type == "deepseek_v3" ? "V3" : (latent ? "V2" : "");
  out["architectures"] = {fmt::format("Deepseek{}ForCausalLM", version)};
  out["torch_dtype"] = "float32";
  out["use_cache"] = true;
  out["rope_scaling"] = nullptr;
  ModelConfig copy = config;
  for (const Field& field : fields_of(copy)) {
    if (!latent && is_one_of(kLatentKeys, field.name)) continue;
    const json value = std::visit([](const auto& held) { return json(held); }, value_of(field));
    const size_t dot = field.name.find('.');
    if (dot == std::string::npos) {
      out[field.name] = value;
    } else if (config.rope_scaling.type != "none") {
      out[field.name.substr(0, dot)][field.name.substr(dot + 1)] = value;
    }
  }
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (out[key] == -1) out[key] = nullptr;
  }
  if (latent && config.q_lora_rank == 0) out["q_lora_rank"] = nullptr;
  return out;
}

void check(const ModelConfig& config) {
  ModelConfig copy = config;
  const std::vector<Field> fields = fields_of(copy);
  check_ranges(fields, "model.");
  check_size(config, fields);
  for (const int64_t token : {config.bos_token_id, config.eos_token_id}) {
    CADRE_CHECK(token < config.vocab_size,
                fmt::format("model.bos_token_id or eos_token_id = {}, allowed: integer in [-1, vocab_size = {})", token,
                            config.vocab_size),
                "-1 for none");
  }
  CADRE_CHECK(config.rope_scaling.type == "none" || config.rope_scaling.factor >= 1.0,
              fmt::format("model.rope_scaling.factor = {}, allowed: number >= 1", config.rope_scaling.factor),
              "positions are stretched, not pressed");
  has_latent_attention(config) ? check_latent_attention(config) : check_multi_head_attention(config);
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
  const int64_t tables = config.tie_word_embeddings ? embedding : 2 * embedding;
  ParameterCount count{.total = tables + count_vectors(config), .embedding = embedding};
  count.active = count.total;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const LayerWeights weights = layer_weights(config, layer);
    count.total += weights.total;
    count.active += weights.active;
  }
  for (int64_t module = 0; module < config.num_nextn_predict_layers; ++module) {
    const int64_t layer = config.num_hidden_layers + module;
    const int64_t projection = 2 * config.hidden_size * config.hidden_size;
    count.further_tokens += layer_weights(config, layer).total + layer_vectors(config, layer) + projection;
    count.further_tokens += 3 * norm_elements(config);
  }
  return count;
}

double flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  const ParameterCount count = count_parameters(config);
  // The head multiplies also where it is the embedding table.
  const int64_t looked_up = config.tie_word_embeddings ? 0 : count.embedding;
  const auto multiplied = static_cast<double>(count.active - looked_up - count_vectors(config));
  const auto attended =
      static_cast<double>(config.num_hidden_layers * attended_width(config)) * static_cast<double>(sequence_length + 1);
  return 6.0 * multiplied + 3.0 * attended;
}

}  // namespace cadre
