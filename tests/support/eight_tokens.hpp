// SPDX-License-Identifier: Apache-2.0
// Eight tokens with given logits for six experts: the gate is the identity, so the logits are the input. The expected numbers of
// the tests that use them come from fp64 arithmetic of their own (NumPy) and stand beside their formulas.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "tests/support/layer_run.hpp"

namespace cadre::test {

using Ids = std::vector<int32_t>;

inline constexpr int kTokens = 8;        // T, two sequences of 4
inline constexpr int kExperts = 6;       // E
inline constexpr double kGiven = 1e-10;  // twelve places are given, of numbers of order one

// x[T,E]
inline constexpr double kLogits[] = {0.0,  1.5,  1.3,  -0.6, -0.3, -0.6, 0.6,  -0.1, 0.8,  -2.0, 1.7,  -0.1,
                                     0.7,  -0.2, -0.4, 0.5,  0.9,  -0.2, -0.2, 0.8,  -1.0, -1.7, 0.4,  -0.7,
                                     -2.1, -0.9, -0.5, -1.3, -1.6, 0.0,  1.0,  -0.3, -0.8, 0.4,  0.8,  -0.3,
                                     0.6,  1.1,  -0.2, -0.9, 0.4,  0.3,  1.2,  -1.4, -0.7, -0.9, -1.9, 0.1};
inline constexpr double kBias[] = {0.30, -0.20, 0.0, 0.15, -0.10, 0.05};

// The two best of softmax(x), and of sigmoid(x) + bias.
inline const Ids kBestTwo = {1, 2, 4, 2, 4, 0, 1, 4, 5, 2, 0, 4, 1, 0, 0, 5};
inline const Ids kBestTwoBiased = {0, 2, 0, 4, 0, 3, 0, 4, 5, 0, 0, 3, 0, 5, 0, 5};

using Change = std::function<void(RouterOptions&)>;

inline LayerCase case_of(const Change& change) {
  LayerCase layer_case = {.options = {.hidden = kExperts, .expert_width = 3},
                          .num_tokens = kTokens,
                          .sequence_length = 4,
                          .prepare = [](Parameter& parameter) {
                            auto* values = parameter.value.data<double>();
                            if (parameter.name() == "mlp.gate.weight") {
                              for (int i = 0; i < kExperts * kExperts; ++i) values[i] = i % (kExperts + 1) == 0 ? 1 : 0;
                            } else if (parameter.name().ends_with("e_score_correction_bias")) {
                              std::ranges::copy(kBias, values);
                            }
                          }};
  layer_case.options.router = {.hidden = kExperts, .num_experts = kExperts, .top_k = 2, .init_std = 0.5};
  change(layer_case.options.router);
  return layer_case;
}

struct Found {
  Ids ids;
  Values weights;
  double loss;
};

inline Found routed(const Change& change) {
  Found found;
  alone(case_of(change), [&](LayerRun& run) {
    std::ranges::copy(kLogits, run.x().data<double>());
    run.loss();
    found = {run.ids(), values_of(run.saved().router.weights), run.saved().balance_loss};
  });
  return found;
}

// ids[T,K] of which `expected` has the first of each token; the others are -1.
inline void expect_weights(const Found& found, const Values& expected) {
  ASSERT_EQ(found.weights.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (found.ids[i] < 0) continue;
    EXPECT_NEAR(found.weights[i], expected[i], 5e-11) << "slot " << i;  // ten places are given
  }
}

inline void biased_sigmoid(RouterOptions& options) {
  options.score = ScoreFunction::sigmoid;
  options.selection_bias = true;
}

}  // namespace cadre::test
