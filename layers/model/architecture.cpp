// SPDX-License-Identifier: Apache-2.0
#include "layers/model/architecture.hpp"

#include <string_view>

#include "layers/model/family.hpp"

namespace cadre {
namespace {

constexpr std::string_view kOwnPrefix = "cadre_";

}  // namespace

const Family& saved_family(const ModelConfig& c) {
  const bool is_glm = c.model_type == "deepseek" && c.n_routed_experts > 0 && c.rope_scaling.type == "none" &&
                      c.scoring_func == ScoreFunction::sigmoid && c.topk_method == TopkMethod::noaux_tc;
  return is_glm ? glm4_moe_family() : family_of(c);
}

std::vector<std::string> keys_beyond_class(const ModelConfig& config) {
  return keys_beyond(saved_family(config), config);
}

std::string architecture_name(const ModelConfig& config) {
  return keys_beyond_class(config).empty() ? std::string(saved_family(config).architecture) : "CadreForCausalLM";
}

std::string saved_model_type(const ModelConfig& config) {
  if (keys_beyond_class(config).empty()) return std::string(saved_family(config).model_type);
  return std::string(kOwnPrefix) + config.model_type;
}

std::string model_type_of_saved(const std::string& saved) {
  return saved.starts_with(kOwnPrefix) ? saved.substr(kOwnPrefix.size()) : saved;
}

}  // namespace cadre
