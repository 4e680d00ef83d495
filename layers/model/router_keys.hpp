// SPDX-License-Identifier: Apache-2.0
// The keys of a model that say how its tokens find experts and what surrounds these, beside those that Hugging Face names
// (ModelConfig has them). The defaults change nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/base/fields.hpp"

namespace cadre {

// Lists are text: numbers with commas between them.
struct RouterKeys {
  std::string router = "token_choice";
  std::string router_gate = "score";
  std::string router_hidden_sizes;
  bool router_two_level = false;
  bool router_noise = false;
  double router_jitter_noise = 0.0;
  double router_top_p = 1.0;
  double hybrid_load = 0.8;

  std::string expert_tasks;
  double task_bias = 0.0;
  std::string task_top_k;
  bool expert_history = false;
  std::string combine_weights = "score";

  int64_t node_count = 1;
  int64_t node_limit = 1;
  std::string expert_conditions;
  std::string dead_experts;

  double capacity_factor = 0.0;
  double eval_capacity_factor = 0.0;
  int64_t expert_capacity = 0;
  int64_t eval_expert_capacity = 0;
  std::string capacity_drop = "probability";
  std::string capacity_kind = "fixed";
  double capacity_rate = 0.01;
  bool capacity_renormalise = false;

  bool seq_aux = false;
  double kl_loss_weight = 0.0;
  double importance_loss_weight = 0.0;
  double load_loss_weight = 0.0;
  double expert_loss_weight = 0.0;
  double device_loss_weight = 0.0;
  double communication_loss_weight = 0.0;
  double expert_variance_weight = 0.0;
  double device_variance_weight = 0.0;
  double router_z_loss_coef = 0.0;
  double diversity_loss_weight = 0.0;
  int64_t balance_devices = 1;
  std::string balance_device_layout = "contiguous";
  std::string importance_form = "cv2";
  std::string expert_variance_form = "cv2";
  std::string device_variance_form = "cv2_unbiased";

  std::string expert_kinds = "same";
  int64_t inner_experts = 4;
  int64_t inner_experts_per_tok = 2;
  bool shared_expert_mean = false;
  std::string norm_position = "pre";
  bool ffn_highway = false;

  bool operator==(const RouterKeys&) const = default;
};

// Appends the table of these keys, bound to the members of `keys`.
void append_fields(RouterKeys& keys, std::vector<Field>& fields);

}  // namespace cadre
