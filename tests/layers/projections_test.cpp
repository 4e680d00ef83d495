// SPDX-License-Identifier: Apache-2.0
// Experts that are single gate, up and down projections, against the definition in plain loops.
#include <gtest/gtest.h>

#include <cmath>

#include "layers/model/router_options.hpp"
#include "tests/support/layer_run.hpp"

namespace cadre::projections_test {
namespace {

using test::LayerCase;
using test::LayerRun;
using test::Values;

constexpr int kHidden = 10;  // H
constexpr int kWidth = 4;    // F
constexpr int kExperts = 9;  // E
constexpr int kTopK = 6;     // K: two of each kind
constexpr double kScale = 2.5;

ModelConfig projections(bool renormalise) {
  ModelConfig config;
  config.hidden_size = kHidden;
  config.moe_intermediate_size = kWidth;
  config.n_routed_experts = kExperts;
  config.num_experts_per_tok = kTopK;
  config.norm_topk_prob = renormalise;
  config.routed_scaling_factor = kScale;
  config.initializer_range = 0.5;
  config.expert_kinds = ExpertKinds::projections;
  return config;
}

// The ids of a kind, the best first.
std::vector<int> best_of_kind(const std::vector<double>& scores, int kind) {
  std::vector<int> ids = {kind, kind + 3, kind + 6};
  std::ranges::stable_sort(ids, [&](int a, int b) { return scores[a] > scores[b]; });
  ids.resize(2);
  return ids;
}

// y = sum_d w_d D_d (silu(sum_g w_g G_g x) * sum_u w_u U_u x), weights are softmax scores, of each kind divided by their sum
// where that is asked for; those of down projections times 2.5.
TEST(Projections, combine_as_they_are_defined) {
  for (const bool renormalise : {false, true}) {
    const ModelConfig config = projections(renormalise);
    LayerCase layer_case = {.options = {.hidden = kHidden,
                                        .expert_width = kWidth,
                                        .expert_kinds = ExpertKinds::projections,
                                        .init_std = 0.5,
                                        .router = router_options(config)}};
    test::alone(layer_case, [&](LayerRun& run) {
      run.loss();
      const auto weight = [&](int id) {
        const char* names[] = {"gate_proj", "up_proj", "down_proj"};
        return run.parameter(fmt::format("mlp.experts.{}.{}.weight", id, names[id % 3])).value;
      };
      for (int64_t t = 0; t < layer_case.num_tokens; ++t) {
        const double* x = run.x().data<double>() + t * kHidden;
        const double* logits = run.saved().router.logits.data<double>() + t * kExperts;
        std::vector<double> scores(logits, logits + kExperts);
        double sum = 0.0;
        for (double& score : scores) sum += score = std::exp(score);
        for (double& score : scores) score /= sum;
        // sum over the chosen of one kind of w W x
        const auto applied = [&](int kind, const Values& in, int64_t width, double scale) {
          const std::vector<int> ids = best_of_kind(scores, kind);
          const double total = renormalise ? scores[ids[0]] + scores[ids[1]] : 1.0;
          Values out(static_cast<size_t>(width), 0.0);
          for (const int id : ids) {
            for (size_t row = 0; row < out.size(); ++row) {
              for (size_t i = 0; i < in.size(); ++i) {
                out[row] += scale * scores[id] / total * weight(id).data<double>()[row * in.size() + i] * in[i];
              }
            }
          }
          return out;
        };
        const Values row(x, x + kHidden);
        Values inner = applied(0, row, kWidth, 1.0);
        const Values up = applied(1, row, kWidth, 1.0);
        for (size_t f = 0; f < inner.size(); ++f) inner[f] *= up[f] / (1.0 + std::exp(-inner[f]));
        const Values expected = applied(2, inner, kHidden, kScale);
        for (int64_t h = 0; h < kHidden; ++h) {
          ASSERT_NEAR(run.y().data<double>()[t * kHidden + h], expected[static_cast<size_t>(h)], 1e-13);
        }
      }
    });
  }
}

// One of each kind: not divided by itself.
TEST(Projections, a_single_one_of_each_kind_weighs_its_score) {
  ModelConfig config = projections(true);
  config.num_experts_per_tok = 3;
  EXPECT_FALSE(router_options(config).weights.renormalise);
}

TEST(Projections, are_counted_as_single_matrices) {
  const ModelConfig config = projections(true);
  EXPECT_EQ(routed_expert_weights(config).total, kExperts * kHidden * kWidth);
  EXPECT_EQ(widest_row(config), kHidden);
}

}  // namespace
}  // namespace cadre::projections_test
