// SPDX-License-Identifier: Apache-2.0
// Coverage, the cost beside dense models and finer experts, against published and hand-computed numbers.
#include "layers/model/accounting.hpp"

#include <gtest/gtest.h>

namespace cadre::accounting_test {
namespace {

// 8 of 256 experts: 86.9 % of them after 64 tokens, 99.83 % after 200, all but 1.3 in ten million after 500.
TEST(Coverage, Golden) {
  EXPECT_NEAR(100.0 * expected_coverage(256, 8, 64), 86.9, 0.05);     // one digit is given
  EXPECT_NEAR(100.0 * expected_coverage(256, 8, 200), 99.83, 0.005);  // two digits
  EXPECT_GT(expected_coverage(256, 8, 500), 0.99999);
  EXPECT_DOUBLE_EQ(expected_coverage(256, 8, 1), 8.0 / 256.0);
  EXPECT_EQ(expected_coverage(8, 8, 1), 1.0);
  EXPECT_EQ(tokens_to_cover(256, 8, 0.5), 22);  // 0.96875^21 = 0.5134, ^22 = 0.4973
  EXPECT_EQ(tokens_to_cover(8, 8, 0.99), 1);
}

// Eight experts, two of them for a token, without attention in the way: experts alone cost twice one expert, and eight of
// them eight times, as the rule of thumb has it; the model does not.
ModelConfig eight_experts() {
  ModelConfig config;
  config.vocab_size = 100;
  config.hidden_size = 16;
  config.num_hidden_layers = 3;
  config.num_attention_heads = 2;
  config.intermediate_size = 64;
  config.first_k_dense_replace = 1;
  config.n_routed_experts = 8;
  config.num_experts_per_tok = 2;
  config.moe_intermediate_size = 32;
  config.topk_method = TopkMethod::noaux_tc;
  config.n_group = 2;
  config.topk_group = 1;
  fill_defaults(config);
  check(config);
  return config;
}

TEST(DenseComparison, CountsExactly) {
  const DenseComparison costs = compare_with_dense(eight_experts(), 8);
  // Two tables 2 * 100 * 16, attention 3 * 4 * 16 * 16, norms 7 * 16, the dense layer 3 * 16 * 64.
  const int64_t around = 3200 + 3072 + 112 + 3072;
  const int64_t expert = 3 * 16 * 32;
  EXPECT_EQ(costs.mixture.parameters.total, around + 2 * (8 * expert + 8 * 16 + 8));
  EXPECT_EQ(costs.one_expert.parameters.total, around + 2 * expert);
  EXPECT_EQ(costs.one_expert.parameters.active, around + 2 * expert);
  EXPECT_EQ(costs.met_by_a_token.parameters.total, around + 2 * 2 * expert);
  EXPECT_EQ(costs.all_experts.parameters.total, around + 2 * 8 * expert);
  // 6 FLOPs for each weight of a product: twice the experts and two routers more than with one expert.
  EXPECT_EQ(costs.mixture.flops_per_token - costs.one_expert.flops_per_token, 6.0 * 2 * (expert + 8 * 16));
  EXPECT_EQ(costs.met_by_a_token.flops_per_token - costs.one_expert.flops_per_token, 6.0 * 2 * expert);
  EXPECT_EQ(costs.all_experts.flops_per_token - costs.one_expert.flops_per_token, 6.0 * 2 * 7 * expert);
}

TEST(DenseComparison, CountsSharedExpertsAsMet) {
  ModelConfig config = eight_experts();
  const DenseComparison without = compare_with_dense(config, 8);
  config.n_shared_experts = 1;
  const DenseComparison with = compare_with_dense(config, 8);
  const int64_t expert = 3 * 16 * 32;
  EXPECT_EQ(with.met_by_a_token.parameters.total - without.met_by_a_token.parameters.total, 2 * expert);
  EXPECT_EQ(with.mixture.parameters.active - without.mixture.parameters.active, 2 * expert);
  EXPECT_EQ(with.one_expert.parameters.total, without.one_expert.parameters.total);
}

TEST(DenseComparison, CountsInnerExperts) {
  ModelConfig config = eight_experts();
  const DenseComparison plain = compare_with_dense(config, 8);
  config.expert_kinds = ExpertKinds::mixture;
  config.inner_experts = 3;
  config.inner_experts_per_tok = 2;
  const DenseComparison nested = compare_with_dense(config, 8);
  const int64_t expert = 3 * 16 * 32;
  EXPECT_EQ(nested.one_expert.parameters.total - plain.one_expert.parameters.total, 2 * 2 * expert);
  EXPECT_EQ(nested.met_by_a_token.parameters.total - plain.met_by_a_token.parameters.total,
            2 * config.num_experts_per_tok * expert);
  EXPECT_EQ(nested.all_experts.parameters.total - plain.all_experts.parameters.total, 2 * 8 * 2 * expert);
}

// The example of the DeepSeekMoE paper: 2 of 16 experts are 120 combinations, 8 of 64 are 4,426,165,368.
TEST(FineGrained, Golden) {
  ModelConfig config = eight_experts();
  config.n_routed_experts = 16;
  const std::vector<FineGrained> shapes = fine_grained_shapes(config, 4);
  ASSERT_EQ(shapes.size(), 3U);
  EXPECT_EQ(shapes[0].combinations, 120.0);
  EXPECT_EQ(shapes[2].combinations, 4426165368.0);
  EXPECT_EQ(shapes[2].experts, 64);
  EXPECT_EQ(shapes[2].top_k, 8);
  EXPECT_EQ(shapes[2].width, 8);
  // The cost of the experts stays: only the router grows.
  ModelConfig finer = config;
  finer.n_routed_experts = shapes[2].experts;
  finer.num_experts_per_tok = shapes[2].top_k;
  finer.moe_intermediate_size = shapes[2].width;
  const int64_t routers = 2 * (shapes[2].router_parameters - shapes[0].router_parameters);
  const int64_t biases = 2 * (64 - 16);
  EXPECT_EQ(count_parameters(finer).total, count_parameters(config).total + routers + biases);
  EXPECT_EQ(fine_grained_shapes(config, 1000).size(), 6U);  // 32 is divided by 1 to 32
}

}  // namespace
}  // namespace cadre::accounting_test
