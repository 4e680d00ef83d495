// SPDX-License-Identifier: Apache-2.0
#include "layers/model/router_keys.hpp"

namespace cadre {

void append_fields(RouterKeys& k, std::vector<Field>& fields) {
  const std::vector<Field> own = {
      {"router", &k.router, one_of({"token_choice", "expert_choice", "hybrid", "sinkhorn", "hierarchical", "dense"}),
       "who chooses whom; layers/README.md says how"},
      {"router_gate", &k.router_gate, one_of({"score", "binary"}), "binary: every chosen expert weighs the same"},
      {"router_hidden_sizes", &k.router_hidden_sizes, any(), "widths of gate layers before the last, as 64,32"},
      {"router_two_level", &k.router_two_level, any(), "a second gate scores the n_group groups; softmax only"},
      {"router_noise", &k.router_noise, any(),
       "learned Gaussian noise on the logits in training (Shazeer et al. 2017)"},
      {"router_jitter_noise", &k.router_jitter_noise, from_below(0, 1), "input times U(1 - eps, 1 + eps) in training"},
      {"router_top_p", &k.router_top_p, between(0, 1), "a token stops at this share of its scores; 1: never"},
      {"hybrid_load", &k.hybrid_load, more_than(0), "share of 1.25 times the mean load above which experts choose"},
      {"expert_tasks", &k.expert_tasks, any(), "task number of each expert, -1 for none, as 0,1,2,3,1,0,3,4"},
      {"task_bias", &k.task_bias, at_least(0), "added to select experts of a token's task; 0.2 is usual"},
      {"task_top_k", &k.task_top_k, any(), "experts that a token of each task visits, as 3,2,3,1"},
      {"expert_history", &k.expert_history, any(),
       "prefer experts that helped such tokens, by a factor in [0.95, 1.05]"},
      {"node_count", &k.node_count, at_least(1), "hosts that experts are thought to be on, neighbours together"},
      {"node_limit", &k.node_limit, at_least(1), "hosts that the experts of a token may be on"},
      {"expert_conditions", &k.expert_conditions, any(), "where an expert works, as 6:task=2,7:position<128"},
      {"dead_experts", &k.dead_experts, any(), "experts that are left out, as 3,7"},
      {"capacity_factor", &k.capacity_factor, at_least(0), "room of an expert, times the mean load; 0: no limit"},
      {"eval_capacity_factor", &k.eval_capacity_factor, at_least(0), "the same in evaluation; never while decoding"},
      {"capacity_drop", &k.capacity_drop, one_of({"probability", "position"}), "who has no room: low scores or late"},
      {"capacity_kind", &k.capacity_kind, one_of({"fixed", "dynamic", "learned"}), "by utilisation or by demand"},
      {"capacity_rate", &k.capacity_rate, at_least(0), "step of capacity_kind = learned"},
      {"capacity_renormalise", &k.capacity_renormalise, any(), "share weights among the experts that had room"},
      {"seq_aux", &k.seq_aux, any(), "aux_loss_alpha weighs the loss of each sequence (DeepSeek-V3), not of the batch"},
      {"kl_loss_weight", &k.kl_loss_weight, at_least(0), "KL divergence of the mean scores from uniform"},
      {"importance_loss_weight", &k.importance_loss_weight, at_least(0),
       "CV^2 of summed weights (Shazeer et al. 2017)"},
      {"load_loss_weight", &k.load_loss_weight, at_least(0), "CV^2 of the expected load; needs router_noise"},
      {"expert_loss_weight", &k.expert_loss_weight, at_least(0), "expert-level balance (DeepSeek-V2)"},
      {"device_loss_weight", &k.device_loss_weight, at_least(0), "device-level balance (DeepSeek-V2)"},
      {"communication_loss_weight", &k.communication_loss_weight, at_least(0), "communication balance (DeepSeek-V2)"},
      {"expert_variance_weight", &k.expert_variance_weight, at_least(0), "CV^2 of the mean scores of experts"},
      {"device_variance_weight", &k.device_variance_weight, at_least(0),
       "CV^2 of the mean scores of devices, unbiased"},
      {"router_z_loss_coef", &k.router_z_loss_coef, at_least(0), "logsumexp(logits)^2 (ST-MoE)"},
      {"balance_devices", &k.balance_devices, at_least(1), "devices in those losses, whatever the number of ranks"},
      {"expert_kinds", &k.expert_kinds, one_of({"same", "typed", "mixture"}),
       "typed: gate, up and down experts in turn, of the same, twice and half the width; mixture: each is one itself"},
      {"inner_experts", &k.inner_experts, between(1, 1 << 10), "of each expert where expert_kinds = mixture"},
      {"inner_experts_per_tok", &k.inner_experts_per_tok, between(1, 1 << 10), "of them that a token visits"},
      {"shared_expert_mean", &k.shared_expert_mean, any(), "divide the shared experts' sum by their number"},
      {"norm_position", &k.norm_position, one_of({"pre", "post"}), "post: after each residual sum, as in 2017"},
      {"ffn_highway", &k.ffn_highway, any(), "g FFN(x) + (1 - g) x: dense layers, and behind every mixture"},
  };
  fields.insert(fields.end(), own.begin(), own.end());
}

}  // namespace cadre
