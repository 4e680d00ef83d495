// SPDX-License-Identifier: Apache-2.0
// Every key of a configuration reaches the option that it names: values that no two keys share.
#include "layers/model/router_options.hpp"

#include <gtest/gtest.h>

namespace cadre::router_options_test {
namespace {

ModelConfig config() {
  ModelConfig config;
  config.hidden_size = 10;
  config.n_routed_experts = 12;
  config.num_experts_per_tok = 3;
  config.n_group = 4;
  config.topk_group = 2;
  config.topk_method = TopkMethod::noaux_tc;
  config.scoring_func = ScoreFunction::sigmoid;
  config.norm_topk_prob = true;
  config.routed_scaling_factor = 2.5;
  config.initializer_range = 0.5;
  return config;
}

TEST(RouterOptions, every_loss_has_its_own_weight) {
  ModelConfig c = config();
  c.aux_loss_alpha = 0.01;
  c.router.losses.by_sequence = true;
  c.router.losses.kl = 0.02;
  c.router.losses.importance = 0.03;
  c.router.losses.load = 0.04;
  c.router.losses.expert = 0.05;
  c.router.losses.device = 0.06;
  c.router.losses.communication = 0.07;
  c.router.losses.expert_variance = 0.08;
  c.router.losses.device_variance = 0.09;
  c.router.losses.z = 0.1;
  c.router.losses.devices = 6;
  const LossOptions losses = router_options(c).losses;
  EXPECT_EQ(losses.balance, 0.01);
  EXPECT_TRUE(losses.by_sequence);
  EXPECT_EQ(losses.kl, 0.02);
  EXPECT_EQ(losses.importance, 0.03);
  EXPECT_EQ(losses.load, 0.04);
  EXPECT_EQ(losses.expert, 0.05);
  EXPECT_EQ(losses.device, 0.06);
  EXPECT_EQ(losses.communication, 0.07);
  EXPECT_EQ(losses.expert_variance, 0.08);
  EXPECT_EQ(losses.device_variance, 0.09);
  EXPECT_EQ(losses.z, 0.1);
  EXPECT_EQ(losses.devices, 6);
  c.router.losses.by_sequence = false;
  EXPECT_FALSE(router_options(c).losses.by_sequence);
}

TEST(RouterOptions, losses_have_their_forms) {
  ModelConfig c = config();
  const LossOptions usual = router_options(c).losses;
  EXPECT_EQ(usual.layout, DeviceLayout::contiguous);
  EXPECT_EQ(usual.importance_form.kind, VarianceForm::Kind::cv2);
  EXPECT_EQ(usual.expert_form.variance, Variance::population);
  EXPECT_EQ(usual.device_form.variance, Variance::unbiased);
  c.router.losses.diversity = 0.11;
  c.router.losses.layout = DeviceLayout::cyclic;
  c.router.losses.importance_form = {VarianceForm::Kind::raw, Variance::population};
  c.router.losses.expert_form = {VarianceForm::Kind::counts, Variance::unbiased};
  c.router.losses.device_form = {VarianceForm::Kind::cv2, Variance::population};
  const LossOptions losses = router_options(c).losses;
  EXPECT_EQ(losses.diversity, 0.11);
  EXPECT_EQ(losses.layout, DeviceLayout::cyclic);
  EXPECT_EQ(losses.importance_form.kind, VarianceForm::Kind::raw);
  EXPECT_EQ(losses.importance_form.variance, Variance::population);
  EXPECT_EQ(losses.expert_form.kind, VarianceForm::Kind::counts);
  EXPECT_EQ(losses.expert_form.variance, Variance::unbiased);
  EXPECT_EQ(losses.device_form.kind, VarianceForm::Kind::cv2);
  EXPECT_EQ(losses.device_form.variance, Variance::population);
}

// M: what limits the devices of a token, which are nodes where those are limited, and never more than its experts.
TEST(RouterOptions, a_token_visits_as_many_devices_as_it_may) {
  ModelConfig c = config();
  c.router.losses.devices = 6;
  EXPECT_EQ(router_options(c).losses.devices_a_token, 3);
  c.router.losses.devices = 2;
  EXPECT_EQ(router_options(c).losses.devices_a_token, 2);
  c.router.losses.devices = 6;
  c.router.eligibility.nodes.groups = 4;
  c.router.eligibility.nodes.kept = 1;
  EXPECT_EQ(router_options(c).losses.devices_a_token, 1);
  EXPECT_EQ(router_options(c).eligibility.nodes.groups, 4);
  EXPECT_EQ(router_options(c).eligibility.nodes.kept, 1);
}

TEST(RouterOptions, scores_weights_and_groups) {
  ModelConfig c = config();
  c.router.scorer.hidden_sizes = {7, 5};
  c.router.scorer.noise = true;
  c.router.scorer.jitter = 0.11;
  const RouterOptions v3 = router_options(c);
  EXPECT_EQ(v3.hidden, 10);
  EXPECT_EQ(v3.num_experts, 12);
  EXPECT_EQ(v3.top_k, 3);
  EXPECT_EQ(v3.score, ScoreFunction::sigmoid);
  EXPECT_TRUE(v3.weights.renormalise);
  EXPECT_EQ(v3.weights.scale, 2.5);
  EXPECT_EQ(v3.weights.gate, GateKind::score);
  EXPECT_EQ(v3.weights.groups, 0);
  EXPECT_TRUE(v3.selection_bias);
  EXPECT_EQ(v3.init_std, 0.5);
  EXPECT_EQ(v3.scorer.hidden_sizes, (std::vector<int64_t>{7, 5}));
  EXPECT_TRUE(v3.scorer.noise);
  EXPECT_EQ(v3.scorer.jitter, 0.11);
  EXPECT_EQ(v3.groups.groups, 4);
  EXPECT_EQ(v3.groups.kept, 2);
  EXPECT_EQ(v3.groups.summed, 2);  // the two best scores
  c.topk_method = TopkMethod::group_limited_greedy;
  c.scoring_func = ScoreFunction::softmax;
  c.norm_topk_prob = false;
  c.router.weights.gate = GateKind::binary;
  c.router.scorer.two_level = true;
  const RouterOptions v2 = router_options(c);
  EXPECT_EQ(v2.score, ScoreFunction::softmax);
  EXPECT_FALSE(v2.weights.renormalise);
  EXPECT_EQ(v2.weights.gate, GateKind::binary);
  EXPECT_FALSE(v2.selection_bias);
  EXPECT_EQ(v2.groups.summed, 1);  // the best score
  EXPECT_EQ(v2.scorer.coarse_groups, 4);
  c.topk_method = TopkMethod::greedy;
  EXPECT_FALSE(router_options(c).groups.limits());
}

TEST(RouterOptions, selection_and_capacity) {
  ModelConfig c = config();
  c.router.select.top_p = 0.6;
  c.router.select.hybrid_load = 0.9;
  c.router.bias.task = 0.12;
  c.router.bias.expert_task = {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, -1};
  c.router.bias.history = true;
  c.router.capacity.factor = 1.3;
  c.router.capacity.eval_factor = 1.7;
  c.router.capacity.drop = DropPolicy::position;
  c.router.capacity.kind = CapacityKind::learned;
  c.router.capacity.rate = 0.13;
  c.router.capacity.renormalise = true;
  const RouterOptions o = router_options(c);
  EXPECT_EQ(o.select.rule, SelectRule::token_choice);
  EXPECT_EQ(o.select.top_p, 0.6);
  EXPECT_EQ(o.select.hybrid_load, 0.9);
  EXPECT_EQ(o.bias.task, 0.12);
  EXPECT_EQ(o.bias.num_tasks, 3);
  EXPECT_EQ(o.bias.expert_task[11], -1);
  EXPECT_TRUE(o.bias.history);
  EXPECT_EQ(o.capacity.factor, 1.3);
  EXPECT_EQ(o.capacity.eval_factor, 1.7);
  EXPECT_EQ(o.capacity.drop, DropPolicy::position);
  EXPECT_EQ(o.capacity.kind, CapacityKind::learned);
  EXPECT_EQ(o.capacity.rate, 0.13);
  EXPECT_TRUE(o.capacity.renormalise);
  EXPECT_FALSE(o.bias.weighs);
  c.router.bias.weighs = true;
  c.router.capacity.tokens = 17;
  c.router.capacity.eval_tokens = 19;
  EXPECT_TRUE(router_options(c).bias.weighs);
  EXPECT_EQ(router_options(c).capacity.tokens, 17);
  EXPECT_EQ(router_options(c).capacity.eval_tokens, 19);
  for (const auto& [name, rule] : {std::pair{"expert_choice", SelectRule::expert_choice},
                                   {"hybrid", SelectRule::hybrid},
                                   {"sinkhorn", SelectRule::sinkhorn},
                                   {"hierarchical", SelectRule::hierarchical}}) {
    set_key(c, "router", name);
    EXPECT_EQ(router_options(c).select.rule, rule) << name;
  }
  EXPECT_EQ(router_options(c).weights.groups, 4);  // of the hierarchical router
}

}  // namespace
}  // namespace cadre::router_options_test
