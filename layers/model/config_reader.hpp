// SPDX-License-Identifier: Apache-2.0
// What the readers of a config.json share: keys go into the fields of a ModelConfig, or into the list of those that change
// nothing, or are refused by name.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <string_view>
#include <vector>

#include "layers/model/config.hpp"

namespace cadre {

// A value as a message shows it: a list or an object in short, one that is deep or long by its kind only.
std::string shown(const nlohmann::json& value);

class ConfigReader {
 public:
  // `where` names the file in messages; what changes nothing is appended to `unused` if that is not nullptr.
  ConfigReader(ModelConfig& config, std::string where, std::vector<std::string>* unused);

  ModelConfig& config() { return config_; }

  // Into the field of that name. null is not what the architecture has when the key is left out: q_lora_rank null is no
  // latent query. Throws when there is no such field, or the value is not allowed.
  void read(const std::string& key, const nlohmann::json& value);
  bool has_field(const std::string& key) const;
  void note_unused(const std::string& text);
  [[noreturn]] void refuse(const std::string& key, const nlohmann::json& value, const std::string& allowed,
                           const std::string& hint) const;
  // A key that no table knows: noted when it is off (null, false or empty), else an error, as is a misspelt key.
  void read_unknown(const std::string& key, const nlohmann::json& value);

 private:
  ModelConfig& config_;
  std::vector<Field> fields_;
  std::string where_;
  std::vector<std::string>* unused_;
};

// The rotary positions of a config.json, whatever version wrote it: rope_theta, and the object rope_scaling or rope_parameters.
// Keys of the file other than these have been read before.
void read_rope(const nlohmann::json& source, ConfigReader& reader);
bool is_rope_key(std::string_view key);
// Of a config.json, "dense" or "sparse" for each layer; sets first_k_dense_replace.
inline constexpr const char* kLayerTypesKey = "mlp_layer_types";
// The ids of dense layers.
inline constexpr const char* kDenseLayersKey = "mlp_only_layers";
// What mscale and mscale_all_dim make of the factor of turned elements, in DeepSeek's code.
double yarn_attention_factor(const RopeScaling& scaling);
// Whether transformers makes the same of them: with one of them 0 it goes on with neither.
bool is_mscale_plain(const RopeScaling& scaling);

// Whether the key only describes the file, so that no note of it is needed.
bool describes_file(std::string_view key);
// A key that Hugging Face's classes know and that has no field of its own here: another name of a field, one that changes
// nothing, or one that changes nothing at one value and is refused at others. False when it is none of these.
bool read_foreign_key(const nlohmann::json& source, const std::string& key, ConfigReader& reader);

}  // namespace cadre
