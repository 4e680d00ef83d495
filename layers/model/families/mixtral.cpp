// SPDX-License-Identifier: Apache-2.0
// Mixtral (Jiang et al. 2024): experts in every layer, none of them shared.
#include "layers/model/family.hpp"

namespace cadre {

const Family& mixtral_family() {
  static const Family family = {
      .model_type = "mixtral",
      .architecture = "MixtralForCausalLM",
      .score_norm = ScoreNorm::always,
      .has_dense_layers = false,
      .has_shared_experts = false,
      .has_mtp_modules = false,
      .num_experts_key = "num_local_experts",
      .names = {.mixture = "block_sparse_moe", .expert = {.gate = "w1", .up = "w3", .down = "w2"}},
      .set_defaults = [](ModelConfig& config) {
        config.bos_token_id = 1;
        config.eos_token_id = 2;
        config.max_position_embeddings = 131072;
        config.rms_norm_eps = 1e-5;
        config.rope_theta = 1e6;
        config.num_key_value_heads = 8;
        config.n_routed_experts = 8;
        config.num_experts_per_tok = 2;
        config.norm_topk_prob = true;
      }};
  return family;
}

}  // namespace cadre
