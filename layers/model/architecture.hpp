// SPDX-License-Identifier: Apache-2.0
// Under which name a model is saved: that of the published class that computes it, else one that other programs refuse.
#pragma once

#include <string>
#include <vector>

#include "layers/model/config.hpp"

namespace cadre {

// Key of a config.json: the model_type of the ModelConfig where the file names another family, whose class computes the model.
inline constexpr const char* kFamilyKey = "cadre_model_type";

// The family whose class computes the model: that of its model_type, but glm4_moe where DeepSeekMoE has the gate of V3.
struct Family;
const Family& saved_family(const ModelConfig& config);

// The keys by which the model leaves the mathematics of that class (keys_beyond in family.hpp).
std::vector<std::string> keys_beyond_class(const ModelConfig& config);

// "DeepseekV3ForCausalLM" and so on, or "CadreForCausalLM" where there are such keys.
std::string architecture_name(const ModelConfig& config);
// The model_type of a config.json: "deepseek_v3" and so on, or "cadre_deepseek_v3" where there are such keys.
std::string saved_model_type(const ModelConfig& config);
// The model_type of a ModelConfig from that of a config.json.
std::string model_type_of_saved(const std::string& saved);

}  // namespace cadre
