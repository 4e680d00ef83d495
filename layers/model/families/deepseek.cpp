// SPDX-License-Identifier: Apache-2.0
// DeepSeekMoE (Dai et al. 2024), whose class is not in transformers but beside the published weights.
//
// DeepSeek-V2 (arXiv 2405.04434). The class of transformers does not divide scores, whatever norm_topk_prob says; the published
// one does.
//
// DeepSeek-V3 (arXiv 2412.19437); Moonlight has its model_type too. Kimi K2 is the same under another name, which transformers
// knows through DeepSeek's class.

#include "layers/model/family.hpp"

namespace cadre {
namespace {

void set_v3_defaults(ModelConfig& config) {
  set_latent_defaults(config);
  config.bos_token_id = 0;
  config.eos_token_id = 1;
  config.max_position_embeddings = 4096;
  config.n_routed_experts = 256;
  config.num_experts_per_tok = 8;
  config.moe_intermediate_size = 2048;
  config.first_k_dense_replace = 3;
  config.scoring_func = ScoreFunction::sigmoid;
  config.topk_method = TopkMethod::noaux_tc;
  config.n_group = 8;
  config.topk_group = 4;
  config.norm_topk_prob = true;
  config.routed_scaling_factor = 2.5;
  config.n_shared_experts = 1;
}

Family v3_family(std::string_view model_type) {
  return {.model_type = model_type,
          .architecture = "DeepseekV3ForCausalLM",
          .attention = AttentionKind::latent,
          .gate = GateForm::sigmoid_bias,
          .bias = AttentionBias::latent,
          .scales_scores = true,
          .has_rope_interleave = true,
          .refuses_other_keys = false,
          .set_defaults = set_v3_defaults};
}

}  // namespace

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

const Family& deepseek_v3_family() {
  static const Family family = v3_family("deepseek_v3");
  return family;
}

const Family& kimi_k2_family() {
  static const Family family = v3_family("kimi_k2");
  return family;
}

}  // namespace cadre
