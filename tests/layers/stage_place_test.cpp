// SPDX-License-Identifier: Apache-2.0
// The layers of stages: all cuts of small models tried, and that of DeepSeek-V3 worked out by hand.
#include "layers/model/stage_place.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "comm/base/random.hpp"

namespace cadre::stage_place_test {
namespace {

using ::testing::ElementsAre;

std::vector<int> layer_counts(const ModelConfig& config, int stages, StageCut cut) {
  std::vector<int> counts;
  int next = 0;
  for (int stage = 0; stage < stages; ++stage) {
    const LayerRange layers = layers_of(config, {stage, stages, cut});
    EXPECT_EQ(layers.first, next);
    next = layers.last;
    counts.push_back(layers.last - layers.first);
  }
  EXPECT_EQ(next, config.num_hidden_layers);
  return counts;
}

// A dense layer of width 8 by 8 and one of width 8 by 40: attention is the same in both.
ModelConfig small_model(int64_t layers, int64_t dense, int64_t vocab, int64_t modules) {
  ModelConfig config;
  config.hidden_size = 8;
  config.num_hidden_layers = layers;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 2;
  config.vocab_size = vocab;
  config.intermediate_size = 40;
  config.first_k_dense_replace = dense;
  config.n_routed_experts = 4;
  config.num_experts_per_tok = 1;
  config.moe_intermediate_size = 8;
  config.num_nextn_predict_layers = modules;
  return config;
}

double work_of(const ModelConfig& config, int64_t layer) {
  const LayerElements elements = layer_elements(config, layer);
  return static_cast<double>(elements.attention + elements.router + elements.shared_experts + elements.dense +
                             elements.met_experts);
}

double most_work(const ModelConfig& config, const std::vector<int>& counts) {
  double most = 0.0;
  int64_t layer = 0;
  for (size_t stage = 0; stage < counts.size(); ++stage) {
    double work = 0.0;
    for (int i = 0; i < counts[stage]; ++i) work += work_of(config, layer++);
    if (stage + 1 == counts.size()) {
      const auto head = static_cast<double>(config.vocab_size * config.hidden_size);
      const auto joined = static_cast<double>(2 * config.hidden_size * config.hidden_size);
      work += head;
      for (int64_t m = 0; m < config.num_nextn_predict_layers; ++m)
        work += head + joined + work_of(config, config.num_hidden_layers + m);
    }
    most = std::max(most, work);
  }
  return most;
}

// Least over all ways to give each stage a layer or more.
double least_work(const ModelConfig& config, std::vector<int> counts, size_t stages, int left) {
  if (counts.size() + 1 == stages) {
    counts.push_back(left);
    return most_work(config, counts);
  }
  double least = 1e300;
  const auto behind = static_cast<int>(stages - counts.size() - 1);
  for (int count = 1; count <= left - behind; ++count) {
    counts.push_back(count);
    least = std::min(least, least_work(config, counts, stages, left - count));
    counts.pop_back();
  }
  return least;
}

TEST(LayersOf, balanced_stages_are_as_good_as_any) {
  const Random random(5, "stages", 0);
  for (uint64_t i = 0; i < 40; ++i) {
    const auto layers = static_cast<int64_t>(4 + random.below(6, 4 * i));
    const auto stages = static_cast<int>(2 + random.below(3, 4 * i + 1));
    const ModelConfig config =
        small_model(layers, static_cast<int64_t>(random.below(4, 4 * i + 2)),
                    static_cast<int64_t>(32 + random.below(600, 4 * i + 3)), static_cast<int64_t>(i % 3));
    const std::vector<int> counts = layer_counts(config, stages, StageCut::balanced);
    EXPECT_EQ(most_work(config, counts), least_work(config, {}, static_cast<size_t>(stages), static_cast<int>(layers)));
    EXPECT_GE(std::ranges::min(counts), 1);
  }
}

TEST(LayersOf, even_stages_have_as_many_layers) {
  const ModelConfig config = small_model(7, 1, 64, 1);
  EXPECT_THAT(layer_counts(config, 3, StageCut::even), ElementsAre(2, 2, 3));
  EXPECT_THAT(layer_counts(config, 7, StageCut::balanced), ElementsAre(1, 1, 1, 1, 1, 1, 1));
}

// 61 layers, the first 3 dense. The head (927 M) twice and the layer of the MTP module are more work than 4 layers of 583 M, so
// that the last of 16 stages has one layer, and the others have 4.
TEST(LayersOf, the_last_stage_of_deepseek_v3_has_one_layer) {
  ModelConfig config;
  config.hidden_size = 7168;
  config.num_hidden_layers = 61;
  config.num_attention_heads = 128;
  config.num_key_value_heads = 128;
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  config.vocab_size = 129280;
  config.intermediate_size = 18432;
  config.first_k_dense_replace = 3;
  config.n_routed_experts = 256;
  config.num_experts_per_tok = 8;
  config.n_shared_experts = 1;
  config.moe_intermediate_size = 2048;
  config.num_nextn_predict_layers = 1;
  std::vector<int> expected(16, 4);
  expected.back() = 1;
  EXPECT_EQ(layer_counts(config, 16, StageCut::balanced), expected);
}

}  // namespace
}  // namespace cadre::stage_place_test
