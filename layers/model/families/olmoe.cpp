// SPDX-License-Identifier: Apache-2.0
// OLMoE (Muennighoff et al. 2024): experts in every layer, a norm over all heads of queries and keys.
#include "layers/model/family.hpp"

namespace cadre {

const Family& olmoe_family() {
  static const Family family = {.model_type = "olmoe",
                                .architecture = "OlmoeForCausalLM",
                                .qk_norm = QkNorm::full,
                                .bias = AttentionBias::qkv_o,
                                .has_clip = true,
                                .has_dense_layers = false,
                                .has_shared_experts = false,
                                .has_mtp_modules = false,
                                .num_experts_key = "num_experts",
                                .set_defaults = [](ModelConfig& config) {
                                  config.eos_token_id = 50279;
                                  config.max_position_embeddings = 4096;
                                  config.rms_norm_eps = 1e-5;
                                  config.n_routed_experts = 64;
                                  config.num_experts_per_tok = 8;
                                  config.use_qk_norm = true;
                                }};
  return family;
}

}  // namespace cadre
