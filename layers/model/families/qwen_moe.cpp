// SPDX-License-Identifier: Apache-2.0
// Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024): biases of queries, keys and values, one shared expert behind a sigmoid gate.
//
// Qwen3-MoE (Yang et al. 2025): a norm of each head of queries and keys, no shared experts. mlp_only_layers of its config.json
// lists the dense layers.

#include "layers/model/family.hpp"

namespace cadre {

const Family& qwen2_moe_family() {
  static const Family family = {.model_type = "qwen2_moe",
                                .architecture = "Qwen2MoeForCausalLM",
                                .bias = AttentionBias::qkv,
                                .bias_key = "qkv_bias",
                                .has_mtp_modules = false,
                                .num_experts_key = "num_experts",
                                .dense_layers_key = "mlp_only_layers",
                                .has_window_switch = true,
                                .expert_targets = ExpertTargets::named,
                                .names = {.shared = "shared_expert", .shared_gate = "shared_expert_gate"},
                                .set_defaults = [](ModelConfig& config) {
                                  config.max_position_embeddings = 32768;
                                  config.attention_bias = true;
                                  config.n_routed_experts = 60;
                                  config.num_experts_per_tok = 4;
                                  config.moe_intermediate_size = 1408;
                                  config.n_shared_experts = 1;
                                  config.shared_expert_intermediate_size = 5632;
                                }};
  return family;
}

const Family& qwen3_moe_family() {
  static const Family family = {.model_type = "qwen3_moe",
                                .architecture = "Qwen3MoeForCausalLM",
                                .qk_norm = QkNorm::head,
                                .bias = AttentionBias::qkv_o,
                                .has_head_dim = true,
                                .has_shared_experts = false,
                                .has_mtp_modules = false,
                                .num_experts_key = "num_experts",
                                .dense_layers_key = "mlp_only_layers",
                                .has_window_switch = true,
                                .set_defaults = [](ModelConfig& config) {
                                  config.max_position_embeddings = 32768;
                                  config.num_key_value_heads = 4;
                                  config.n_routed_experts = 128;
                                  config.num_experts_per_tok = 8;
                                  config.moe_intermediate_size = 768;
                                  config.use_qk_norm = true;
                                }};
  return family;
}

}  // namespace cadre
