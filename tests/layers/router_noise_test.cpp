// SPDX-License-Identifier: Apache-2.0
// Noise on logits and on the input of the gate, and the load that noise makes likely.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "layers/router/loss_terms.hpp"
#include "tests/support/eight_tokens.hpp"

namespace cadre::router_noise_test {
namespace {

using test::case_of;
using test::kExperts;
using test::kGiven;
using test::kLogits;
using test::kTokens;
using test::LayerCase;
using test::LayerRun;
using test::Values;

// l_e = sum over tokens of Phi((x_e - the 2nd largest noisy logit of the others) / log(1 + e^v)), noisy = x + n log(1 + e^v).
TEST(RouterValues, noisy_load_is_the_chance_to_be_chosen_again) {
  Values v = {0.4,  -0.6, 1.1,  0.7,  0.5, 0.3,  0.8,  -1.1, 0.5,  0.5, -1.4, 0.3,  -0.2, 0.6, -0.4, 0.0,
              0.3,  -0.7, 0.5,  -0.1, 0.4, -0.4, 0.9,  0.5,  -0.1, 0.5, 1.0,  1.4,  -1.3, 0.7, 0.4,  -0.1,
              -0.8, 1.0,  -1.0, 0.5,  1.0, -1.3, -0.2, -1.0, 0.2,  1.2, 1.6,  -1.4, -0.5, 0.6, 1.3,  0.3};
  const Values n = {-0.7, 0.3, 0.0,  -0.2, -0.7, 0.4,  0.3,  -0.1, -0.2, -1.3, -0.5, 1.2,  -0.2, -1.4, 1.3,  0.5,
                    2.1,  0.1, -0.5, -1.4, 1.3,  2.6,  -0.8, -0.6, 0.6,  -0.8, -0.3, -0.3, 0.2,  1.1,  0.0,  0.9,
                    -0.4, 0.3, -2.1, -1.4, 0.8,  -0.6, 0.6,  0.5,  1.3,  0.8,  1.0,  -0.1, -0.7, -0.7, -0.5, -1.1};
  Values clean(std::begin(kLogits), std::end(kLogits));
  Values noisy(clean);
  for (size_t i = 0; i < noisy.size(); ++i) noisy[i] += n[i] * std::log1p(std::exp(v[i]));
  const auto view = [](Values& values) { return Tensor(values.data(), DType::f64, {kTokens, kExperts}); };
  Scorer::Saved saved;
  saved.clean = view(clean);
  saved.noise_input = view(v);
  saved.logits = view(noisy);
  const Values expected = {3.30289804365,  2.731354056478, 2.965894879347,
                           1.912849930721, 3.197953465698, 2.57350240445};
  const Values load = noisy_load(saved, 2);
  for (size_t e = 0; e < kExperts; ++e) EXPECT_NEAR(load[e], expected[e], kGiven) << e;
}

// logits = x W + n log(1 + e^(x V)), n of N(0, 1)
TEST(RouterValues, noise_is_normal_and_as_wide_as_the_softplus_says) {
  LayerCase layer_case = case_of([](RouterOptions& o) { o.scorer.noise = true; });
  layer_case.num_tokens = 400;
  const auto identity = layer_case.prepare;
  layer_case.prepare = [&](Parameter& parameter) {
    identity(parameter);
    if (!parameter.name().ends_with("noise.weight")) return;
    for (int i = 0; i < kExperts * kExperts; ++i) parameter.value.data<double>()[i] = 0.1 * (i % 5) - 0.2;
  };
  test::alone(layer_case, [](LayerRun& run) {
    run.loss();
    const Scorer::Saved& saved = run.saved().router.scorer;
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t i = 0; i < saved.logits.numel(); ++i) {
      const int64_t row = i / kExperts * kExperts;
      double v = 0.0;
      for (int64_t h = 0; h < kExperts; ++h) {
        v += run.x().data<double>()[row + h] * (0.1 * static_cast<double>((i % kExperts * kExperts + h) % 5) - 0.2);
      }
      const double n = (saved.logits.data<double>()[i] - run.x().data<double>()[i]) / std::log(1.0 + std::exp(v));
      sum += n;
      squares += n * n;
    }
    // Of 2400 numbers: four standard errors of mean, 1 / sqrt(2400), and variance, sqrt(2 / 2400).
    EXPECT_NEAR(sum / 2400.0, 0.0, 4.0 / std::sqrt(2400.0));
    EXPECT_NEAR(squares / 2400.0, 1.0, 4.0 * std::sqrt(2.0 / 2400.0));
  });
}

// logits = (x f) W, f of U(1 - 0.1, 1 + 0.1): mean 1, variance 0.1^2 / 3
TEST(RouterValues, jitter_multiplies_the_input_within_its_bounds) {
  LayerCase layer_case = case_of([](RouterOptions& o) { o.scorer.jitter = 0.1; });
  layer_case.num_tokens = 400;
  test::alone(layer_case, [](LayerRun& run) {
    run.loss();
    const Scorer::Saved& saved = run.saved().router.scorer;
    double sum = 0.0;
    double squares = 0.0;
    double widest = 0.0;
    for (int64_t i = 0; i < saved.logits.numel(); ++i) {
      const double f = saved.logits.data<double>()[i] / run.x().data<double>()[i];
      widest = std::max(widest, std::abs(f - 1.0));
      sum += f - 1.0;
      squares += (f - 1.0) * (f - 1.0);
    }
    EXPECT_LE(widest, 0.1 + 1e-12);
    // Of 2400 numbers: four standard errors of the mean; and of the variance, whose own deviation is 0.89 of it.
    EXPECT_NEAR(sum / 2400.0, 0.0, 4.0 * 0.1 / std::sqrt(3.0 * 2400.0));
    EXPECT_NEAR(squares / 2400.0, 0.01 / 3.0, 4.0 * 0.89 * 0.01 / 3.0 / std::sqrt(2400.0));
  });
}

}  // namespace
}  // namespace cadre::router_noise_test
