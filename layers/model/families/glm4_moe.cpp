// SPDX-License-Identifier: Apache-2.0
// GLM-4.5: the gate of DeepSeek-V3; half of a head turns with positions.
//
// GLM-4.7-Flash: the attention and the gate of DeepSeek-V3. mlp_layer_types of its config.json says which layers are dense.

#include "layers/model/family.hpp"

namespace cadre {

const Family& glm4_moe_family() {
  static const Family family = {.model_type = "glm4_moe",
                                .architecture = "Glm4MoeForCausalLM",
                                .gate = GateForm::sigmoid_bias,
                                .qk_norm = QkNorm::head,
                                .has_qk_norm_key = true,
                                .bias = AttentionBias::qkv,
                                .has_head_dim = true,
                                .has_partial_rotary = true,
                                .scales_scores = true,
                                .set_defaults = [](ModelConfig& config) {
                                  config.max_position_embeddings = 131072;
                                  config.rms_norm_eps = 1e-5;
                                  config.num_key_value_heads = 8;
                                  config.partial_rotary_factor = 0.5;
                                  config.scoring_func = ScoreFunction::sigmoid;
                                  config.topk_method = TopkMethod::noaux_tc;
                                  config.norm_topk_prob = true;
                                  config.n_routed_experts = 128;
                                  config.n_shared_experts = 1;
                                  config.num_experts_per_tok = 8;
                                  config.moe_intermediate_size = 1408;
                                  config.first_k_dense_replace = 1;
                                }};
  return family;
}

const Family& glm4_moe_lite_family() {
  static const Family family = {.model_type = "glm4_moe_lite",
                                .architecture = "Glm4MoeLiteForCausalLM",
                                .attention = AttentionKind::latent,
                                .gate = GateForm::sigmoid_bias,
                                .bias = AttentionBias::latent,
                                .scales_scores = true,
                                .has_rope_interleave = true,
                                .dense_layers_key = "mlp_layer_types",
                                .set_defaults = [](ModelConfig& config) {
                                  config.bos_token_id = 0;
                                  config.eos_token_id = 1;
                                  config.max_position_embeddings = 202752;
                                  config.rms_norm_eps = 1e-5;
                                  config.q_lora_rank = 768;
                                  config.kv_lora_rank = 512;
                                  config.qk_nope_head_dim = 192;
                                  config.qk_rope_head_dim = 64;
                                  config.v_head_dim = 256;
                                  config.n_routed_experts = 64;
                                  config.num_experts_per_tok = 4;
                                  config.n_shared_experts = 1;
                                  config.moe_intermediate_size = 1536;
                                  config.first_k_dense_replace = 1;
                                  config.scoring_func = ScoreFunction::sigmoid;
                                  config.topk_method = TopkMethod::noaux_tc;
                                  config.norm_topk_prob = true;
                                  config.routed_scaling_factor = 1.8;
                                }};
  return family;
}

}  // namespace cadre
