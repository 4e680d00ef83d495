// SPDX-License-Identifier: Apache-2.0
// Keys of a config.json that Hugging Face's classes know and Cadre has no field for.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "layers/model/config_reader.hpp"
#include "layers/model/family.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 10> kDescriptiveKeys = {
    "_commit_hash", "_name_or_path", "architectures", "auto_map", "dtype",
    "name_or_path", "torch_dtype",   "use_cache",     kFamilyKey, "transformers_version",
};

// They change nothing that Cadre computes. How the weights are quantised is seen from the weights. The last three lines are
// keys of generation and of classifiers, which transformers 4 wrote into every kind of model.
constexpr std::array kUnusedKeys = {"_attn_implementation",
                                    "_attn_implementation_autoset",
                                    "attn_implementation",
                                    "chunk_size_feed_forward",
                                    "ep_size",
                                    "gradient_checkpointing",
                                    "is_decoder",
                                    "max_window_layers",
                                    "output_attentions",
                                    "output_hidden_states",
                                    "output_router_logits",
                                    "pad_token_id",
                                    "pretraining_tp",
                                    "quantization_config",
                                    "return_dict",
                                    "return_dict_in_generate",
                                    "router_aux_loss_coef",
                                    "tf_legacy_loss",
                                    "tokenizer_class",
                                    "torchscript",
                                    "unsloth_fixed",
                                    "unsloth_version",
                                    "use_bfloat16",
                                    "use_mtp",
                                    "bad_words_ids",
                                    "begin_suppress_tokens",
                                    "decoder_start_token_id",
                                    "diversity_penalty",
                                    "do_sample",
                                    "early_stopping",
                                    "encoder_no_repeat_ngram_size",
                                    "exponential_decay_length_penalty",
                                    "finetuning_task",
                                    "forced_bos_token_id",
                                    "forced_eos_token_id",
                                    "id2label",
                                    "label2id",
                                    "length_penalty",
                                    "max_length",
                                    "max_new_tokens",
                                    "min_length",
                                    "no_repeat_ngram_size",
                                    "num_beam_groups",
                                    "num_beams",
                                    "num_labels",
                                    "num_return_sequences",
                                    "output_scores",
                                    "prefix",
                                    "problem_type",
                                    "remove_invalid_values",
                                    "repetition_penalty",
                                    "sep_token_id",
                                    "suppress_tokens",
                                    "task_specific_params",
                                    "temperature",
                                    "top_k",
                                    "top_p",
                                    "typical_p"};

// Other names of fields.
constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kOtherNames = {
    {{"num_experts", "n_routed_experts"},
     {"num_local_experts", "n_routed_experts"},
     {"num_mtp_layers", "num_nextn_predict_layers"}}};

// Keys that change nothing at this value, and something that Cadre does not compute at another one.
const json& neutral_values() {
  static const json values = {{"add_cross_attention", false},
                              {"attention_dropout", 0.0},
                              {"attn_pdrop", 0.0},
                              {"embd_pdrop", 0.0},
                              {"embedding_multiplier", 1.0},
                              {"hidden_dropout", 0.0},
                              {"hidden_dropout_prob", 0.0},
                              {"is_encoder_decoder", false},
                              {"layerdrop", 0.0},
                              {"logit_scale", 1.0},
                              {"logits_scaling", 1.0},
                              {"mlp_bias", false},
                              {"resid_pdrop", 0.0},
                              {"residual_multiplier", 1.0},
                              {"decoder_sparse_step", 1},
                              {"use_sliding_window", false}};
  return values;
}

bool is_one_of(std::span<const char* const> keys, std::string_view key) {
  return std::ranges::find(keys, key) != keys.end();
}

constexpr const char* kWindowKey = "sliding_window";

void set_dense_layers(const json& source, const std::string& key, int64_t count, ConfigReader& reader) {
  const json given = source.value("first_k_dense_replace", json());
  if (!given.is_null() && given != count) {
    reader.refuse(key, source[key], fmt::format("what first_k_dense_replace = {} says", shown(given)),
                  "two forms of one key");
  }
  reader.config().first_k_dense_replace = count;
  reader.note_unused(fmt::format("{} (read as first_k_dense_replace)", key));
}

// They follow from other keys; with another value the classes that have them compute something else.
const char* sum_that_is(const ModelConfig& config, const std::string& key, int64_t& derived) {
  const bool latent = has_latent_attention(config);
  if (key == "qk_head_dim" && latent) {
    derived = config.qk_nope_head_dim + config.qk_rope_head_dim;
    return "qk_nope_head_dim + qk_rope_head_dim";
  }
  if (key != "head_dim") return nullptr;
  derived = latent ? config.qk_rope_head_dim : config.hidden_size / std::max<int64_t>(1, config.num_attention_heads);
  return latent ? "qk_rope_head_dim" : "hidden_size / num_attention_heads";
}

// Dense layers come first here.
void read_layer_types(const json& source, ConfigReader& reader) {
  const json& types = source[kLayerTypesKey];
  int64_t dense = 0;
  bool is_ordered = types.is_array() && static_cast<int64_t>(types.size()) == reader.config().num_hidden_layers;
  for (size_t i = 0; is_ordered && i < types.size(); ++i) {
    is_ordered = types[i] == "sparse" || (types[i] == "dense" && dense == static_cast<int64_t>(i));
    if (types[i] == "dense") ++dense;
  }
  if (!is_ordered) {
    reader.refuse(kLayerTypesKey, types, "one for each layer, dense ones first, then sparse",
                  "Cadre has dense layers in front of those with experts");
  }
  set_dense_layers(source, kLayerTypesKey, dense, reader);
}

void read_dense_layers(const json& source, ConfigReader& reader) {
  const json& layers = source[kDenseLayersKey];
  bool is_ordered = layers.is_array();
  for (size_t i = 0; is_ordered && i < layers.size(); ++i) is_ordered = layers[i] == static_cast<int64_t>(i);
  if (!is_ordered) {
    reader.refuse(kDenseLayersKey, layers, "the first layers, as [0,1]",
                  "Cadre has dense layers in front of those with experts");
  }
  set_dense_layers(source, kDenseLayersKey, static_cast<int64_t>(layers.size()), reader);
}

// A window that no sequence leaves changes nothing.
void read_window(const json& source, ConfigReader& reader) {
  const json& window = source[kWindowKey];
  const bool is_off = family_of(reader.config()).has_window_switch || window.is_null() ||
                      (window.is_number_integer() && window >= reader.config().max_position_embeddings);
  if (!is_off) reader.refuse(kWindowKey, window, "null", "Cadre computes full attention");
  reader.note_unused(kWindowKey);
}

}  // namespace

bool describes_file(std::string_view key) { return std::ranges::find(kDescriptiveKeys, key) != kDescriptiveKeys.end(); }

bool read_foreign_key(const json& source, const std::string& key, ConfigReader& reader) {
  const json& value = source[key];
  if (is_one_of(kUnusedKeys, key)) {
    reader.note_unused(key);
    return true;
  }
  const auto* other = std::ranges::find(kOtherNames, key, &std::pair<std::string_view, std::string_view>::first);
  if (other != kOtherNames.end()) {
    const std::string name(other->second);
    if (!source.contains(name)) {
      reader.read(name, value);
    } else if (source[name] != value) {
      reader.refuse(key, value, fmt::format("{} = {}", name, shown(source[name])), "two names of one key");
    }
    reader.note_unused(fmt::format("{} (read as {})", key, name));
    return true;
  }
  if (const auto neutral = neutral_values().find(key); neutral != neutral_values().end()) {
    if (!value.is_null() && value != *neutral) {
      reader.refuse(key, value, neutral->dump(), "Cadre does not compute this variant");
    }
    if (key != "attention_dropout") reader.note_unused(key);
    return true;
  }
  int64_t derived = 0;
  if (const char* sum = sum_that_is(reader.config(), key, derived)) {
    if (!value.is_null() && value != derived) {
      reader.refuse(key, value, fmt::format("{} = {}", sum, derived), "the sizes of a head follow from other keys");
    }
    reader.note_unused(key);
    return true;
  }
  if (key == kLayerTypesKey && !value.is_null()) {
    read_layer_types(source, reader);
    return true;
  }
  if (key == family_of(reader.config()).bias_key) {
    if (source.contains("attention_bias") && source["attention_bias"] != value) {
      reader.refuse(key, value, fmt::format("attention_bias = {}", shown(source["attention_bias"])),
                    "two names of one key");
    }
    if (!value.is_null()) reader.read("attention_bias", value);
    return true;
  }
  if (key == kDenseLayersKey && !value.is_null()) {
    read_dense_layers(source, reader);
    return true;
  }
  if (key == kWindowKey) {
    read_window(source, reader);
    return true;
  }
  if (key == "layer_types" && value.is_array() &&
      std::ranges::all_of(value, [](const json& type) { return type == "full_attention"; })) {
    reader.note_unused(key);
    return true;
  }
  return false;
}

}  // namespace cadre
