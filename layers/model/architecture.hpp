// SPDX-License-Identifier: Apache-2.0
// Under which name a model is saved: that of the published classes that compute it, else one that they refuse.
#pragma once

#include <string>
#include <vector>

#include "layers/model/config.hpp"

namespace cadre {

// deepseek with the gate of V3 is GLM-4.5's architecture with all elements of a head turned: glm4_moe in transformers.
bool is_glm4_moe(const ModelConfig& config);

// The keys by which the model leaves the mathematics of its model_type, as DeepSeek published it and as Hugging Face
// transformers 5 has it (which has no deepseek, but glm4_moe); none where both compute it. What only training does, such as
// losses, is not among them.
std::vector<std::string> keys_beyond_deepseek(const ModelConfig& config);

// "DeepseekV3ForCausalLM" and so on, or "CadreForCausalLM" where there are such keys.
std::string architecture_name(const ModelConfig& config);
// The model_type of a config.json: "deepseek_v3" and so on, or "cadre_deepseek_v3" where there are such keys.
std::string saved_model_type(const ModelConfig& config);
// The model_type of a ModelConfig from that of a config.json.
std::string model_type_of_saved(const std::string& saved);

}  // namespace cadre
