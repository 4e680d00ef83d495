// SPDX-License-Identifier: Apache-2.0
// A config.json: which keys it may have, and what it means by those that it leaves out.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "comm/base/check.hpp"
#include "layers/model/config.hpp"

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

}  // namespace

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

}  // namespace cadre
