// SPDX-License-Identifier: Apache-2.0
// Parameters and FLOPs of a model, against published models and counts by hand.
#include <gtest/gtest.h>

#include "layers/model/config.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/model_configs.hpp"

namespace cadre::model_config_counts_test {
namespace {

using test::deepseek_moe_16b;
using test::deepseek_v3;
using test::expect_message;
using test::message_of;
using test::small_mixture;

TEST(ModelConfig, CountsTheParametersOfThePublishedModel) {
  const ModelConfig config = model_config_from_json(deepseek_moe_16b(), "config.json");
  const ParameterCount count = count_parameters(config);
  // Two vocabulary tables, 28 layers of four square matrices and two norms, the last norm, one dense FFN, 27 layers of
  // a router and 66 experts. The paper says 16.4B.
  const int64_t moe_layer = 64 * 2048 + int64_t{66} * 3 * 2048 * 1408;
  const int64_t rest = 2 * 102400 * 2048 + 28 * (4 * 2048 * 2048 + 2 * 2048) + 2048 + 3 * 2048 * 10944;
  EXPECT_EQ(count.total, 27 * moe_layer + rest);
  EXPECT_EQ(count.total / 100'000'000, 163);
  EXPECT_EQ(count.embedding, 102400 * 2048);
  // 27 layers of 58 experts of 3 * 2048 * 1408 that a token does not visit.
  EXPECT_EQ(count.total - count.active, int64_t{27} * 58 * 3 * 2048 * 1408);
}

TEST(ModelConfig, CountsTheParametersOfDeepSeekV3AsPublished) {
  const ModelConfig config = model_config_from_json(deepseek_v3(), "config.json");
  const ParameterCount count = count_parameters(config);
  EXPECT_EQ(count.total, 671'026'419'200);
  EXPECT_EQ(count.active, 37'552'297'472);
  EXPECT_EQ(count.active - count.embedding, 36'625'618'432);
  // One layer (attention, mixture, two norms), the projection of two rows to one, three norms.
  EXPECT_EQ(count.mtp_modules, 187'107'328 + 11'320'164'608 + 2 * 7168 + 2 * 7168 * 7168 + 3 * 7168);
  // Queries and keys of 192 elements, values of 128, 128 heads, 61 layers.
  const double products = 6.0 * static_cast<double>(count.active - count.embedding);
  const double vectors = 6.0 * (61 * (2 * 7168 + 1536 + 512) + 7168 + 58 * 256);
  EXPECT_DOUBLE_EQ(flops_per_token(config, 4095), products - vectors + 3.0 * 61 * 128 * 320 * 4096);
}

TEST(ModelConfig, CountsTiedTablesOnce) {
  ModelConfig config = small_mixture();
  const ParameterCount apart = count_parameters(config);
  config.tie_word_embeddings = true;
  EXPECT_EQ(apart.total - count_parameters(config).total, config.vocab_size * config.hidden_size);
  EXPECT_DOUBLE_EQ(flops_per_token(config, 9), flops_per_token(small_mixture(), 9));
}

// m times as many experts of an m-th of the width, m times as many of them chosen: the same weights, but for the gate.
TEST(ModelConfig, FineGrainedExpertsCostTheSame) {
  const ParameterCount coarse = count_parameters(small_mixture());
  ModelConfig config = small_mixture();
  config.n_routed_experts *= 4;
  config.num_experts_per_tok *= 4;
  config.n_shared_experts *= 4;
  config.moe_intermediate_size /= 4;
  const ParameterCount fine = count_parameters(config);
  const int64_t gates = 3 * (24 - 6) * 64;  // three mixture layers
  EXPECT_EQ(fine.total, coarse.total + gates);
  EXPECT_EQ(fine.active, coarse.active + gates);
}

TEST(ModelConfig, CountsWhatRoutersAndBlocksAdd) {
  ModelConfig config = small_mixture();
  const ParameterCount plain = count_parameters(config);
  config.router.scorer.hidden_sizes = {12};
  config.router.scorer.noise = true;
  config.router.capacity.factor = 1.0;
  config.router.capacity.kind = CapacityKind::dynamic;
  config.router.bias.expert_task = {0, 1, 2, 3, 1, 0};
  config.router.bias.history = true;
  config.ffn_highway = true;
  // A mixture layer: a gate of 64 to 12 to 6 instead of 64 to 6, noise, a row of capacities, three times five of histories, and the
  // highway with its network; the dense layer has a highway.
  const int64_t gate = 64 * 12 + 12 * 6 - 64 * 6 + 64 * 6;
  const int64_t added = 3 * (gate + 16 * 6 + 64 * 64 + 3 * 64 * 96) + 64 * 64;
  const ParameterCount count = count_parameters(config);
  EXPECT_EQ(count.total - plain.total, added);
  EXPECT_EQ(count.active - plain.active, added);
}

// Six experts of width 32: SwiGLU has 3 * 64 * 32 weights, an up expert 2 * 64 * 64, a down expert 2 * 64 * 16.
TEST(ModelConfig, CountsTypedExperts) {
  ModelConfig config = small_mixture();
  const ParameterCount same = count_parameters(config);
  config.expert_kinds = ExpertKinds::typed;
  check(config);
  const int64_t usual = 3 * 64 * 32;
  const int64_t typed = usual + 2 * 64 * 64 + 2 * 64 * 16;  // one of each kind
  EXPECT_EQ(count_parameters(config).total - same.total, 3 * (2 * typed - 6 * usual));
  config.ffn_gate = false;
  expect_message(message_of([&] { check(config); }), {"expert_kinds", "silu"});
}

TEST(ModelConfig, CountsExpertsThatAreMixtures) {
  ModelConfig config = small_mixture();
  const ParameterCount same = count_parameters(config);
  config.expert_kinds = ExpertKinds::mixture;
  config.inner_experts = 3;
  config.inner_experts_per_tok = 2;
  check(config);
  const int64_t ffn = 3 * 64 * 32;
  const ParameterCount mixture = count_parameters(config);
  EXPECT_EQ(mixture.total - same.total, 3 * 6 * (3 * 64 + 2 * ffn));
  EXPECT_EQ(mixture.active - same.active, 3 * config.num_experts_per_tok * (3 * 64 + ffn));
  config.inner_experts_per_tok = 4;
  expect_message(message_of([&] { check(config); }), {"inner_experts_per_tok = 4", "inner_experts = 3"});
}

TEST(ModelConfig, CountsEveryVariantByHand) {
  ModelConfig config = small_mixture();
  config.num_hidden_layers = 2;
  config.hidden_act = "gelu";
  config.ffn_gate = false;
  config.norm = "layernorm";
  config.topk_method = TopkMethod::noaux_tc;
  // q and o 64 * 64, k and v 64 * 32; two matrices an FFN; weight and bias a norm; one selection bias an expert.
  const int64_t attention = 2 * 64 * 64 + 2 * 64 * 32;
  const int64_t expert = 2 * 64 * 32;
  const int64_t norms = 5 * 2 * 64;
  const int64_t products = 2 * attention + 2 * 64 * 96 + 6 * 64 + (6 + 1) * expert + 64 * 256;
  const ParameterCount count = count_parameters(config);
  EXPECT_EQ(count.total, products + norms + 6 + 64 * 256);
  EXPECT_EQ(count.total - count.active, 4 * expert);
  // Each of 2 layers: 2 * 2 * 64 FLOPs a key forward, three times with backward, (100 + 1) / 2 keys.
  EXPECT_DOUBLE_EQ(flops_per_token(config, 100), 6.0 * (products - 4 * expert) + 2 * 3 * 4 * 64 * 50.5);
}

}  // namespace
}  // namespace cadre::model_config_counts_test
