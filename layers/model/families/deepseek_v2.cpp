// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V2 (arXiv 2405.04434). The class of transformers does not divide scores, whatever norm_topk_prob says; the published
// one does.
#include "layers/model/family.hpp"

namespace cadre {

const Family& deepseek_v2_family() {
  static const Family family = {.model_type = "deepseek_v2",
                                .architecture = "DeepseekV2ForCausalLM",
                                .attention = AttentionKind::latent,
                                .gate = GateForm::softmax_groups,
                                .score_norm = ScoreNorm::never,
                                .bias = AttentionBias::latent,
                                .scales_scores = true,
                                .refuses_other_keys = false,
                                .set_defaults = [](ModelConfig& config) {
                                  set_latent_defaults(config);
                                  config.bos_token_id = 1;
                                  config.eos_token_id = 2;
                                  config.n_routed_experts = 64;
                                  config.n_shared_experts = 2;
                                  config.moe_intermediate_size = 1407;
                                }};
  return family;
}

}  // namespace cadre
