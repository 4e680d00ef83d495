// SPDX-License-Identifier: Apache-2.0
// DeepSeekMoE (Dai et al. 2024), whose class is not in transformers but beside the published weights.
#include "layers/model/family.hpp"

namespace cadre {

const Family& deepseek_family() {
  static const Family family = {.model_type = "deepseek",
                                .architecture = "DeepseekForCausalLM",
                                .score_norm = ScoreNorm::several,
                                .has_yarn = false,
                                .has_moe_layer_freq = true,
                                .refuses_other_keys = false,
                                .expert_targets = ExpertTargets::modules,
                                .set_defaults = [](ModelConfig& /*config*/) {}};
  return family;
}

}  // namespace cadre
