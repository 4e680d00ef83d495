// SPDX-License-Identifier: Apache-2.0
// What a selection bias learns from a step: the load, and the history of experts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/eight_tokens.hpp"

namespace cadre::router_bias_test {
namespace {

using test::Ids;
using test::Values;

// b_e += 0.01 sign(mean count - count_e); the mean is 4.
TEST(RouterValues, a_bias_moves_against_the_load) {
  Values bias = {0.5, 0.5, 0.5, 0.5};
  update_selection_bias(std::vector<int64_t>{7, 1, 4, 4}, 0.01, Tensor(bias.data(), DType::f64, {4}));
  const Values expected = {0.49, 0.51, 0.5, 0.5};
  for (size_t e = 0; e < 4; ++e) EXPECT_DOUBLE_EQ(bias[e], expected[e]);
}

// An expert helped where more of it would have lowered the loss: dL/dw < 0. rate += 0.1 (successes / slots - rate), from 0.5.
// Quality is 5 (1 - g / largest |g| of the token) a slot: 7.5 0, 5 (1 + 1 / 6) 10, 0 and 0 7.5 of these; the mean moves by 0.1,
// from 5.
TEST(RouterValues, history_counts_negative_gradients_as_successes) {
  SelectionBias bias("gate", 3, {.history = true});
  ParameterStore store;
  bias.each_parameter([&](Parameter& parameter) { store.add(parameter); });
  store.allocate(DType::f64, false, false);
  store.initialise(1);
  Ids ids = {0, 1, 0, 2, 1, -1, 0, 1};
  Values dweights = {-1.0, 2.0, -0.5, -3.0, 1.0, -9.0, 0.25, -0.125};
  std::vector<int64_t> counts;
  bias.add_history({}, Tensor(ids.data(), DType::i32, {4, 2}), Tensor(dweights.data(), DType::f64, {4, 2}), counts);
  const auto fixed = [](double quality) { return std::llround(quality * 0x1p20); };
  EXPECT_EQ(counts, (std::vector<int64_t>{2, 1, 1,                                                  // successes
                                          fixed(7.5) + fixed(35.0 / 6.0), fixed(7.5), fixed(10.0),  // quality
                                          3, 3, 1}));                                               // slots
  bias.update_history(counts);
  const auto moved = [](double from, double mean) { return from + 0.1 * (mean - from); };
  const double success[] = {moved(0.5, 2.0 / 3.0), moved(0.5, 1.0 / 3.0), moved(0.5, 1.0)};
  const double quality[] = {moved(5.0, (7.5 + 35.0 / 6.0) / 3.0), moved(5.0, 2.5), moved(5.0, 10.0)};
  const std::vector<ExpertHistory> of_all = bias.history().front();
  const double mean_success = (success[0] + success[1] + success[2]) / 3.0;
  const double mean_quality = (quality[0] + quality[1] + quality[2]) / 3.0;
  for (size_t e = 0; e < 3; ++e) {
    EXPECT_NEAR(of_all[e].record.success, success[e], 1e-15) << e;
    EXPECT_NEAR(of_all[e].record.quality, quality[e], 1e-6) << e;  // of whole numbers of 2^-20
    EXPECT_EQ(of_all[e].slots, e == 2 ? 1 : 3);
    const double lead = (quality[e] - mean_quality) / 0.4 + (success[e] - mean_success) / 0.03;
    EXPECT_NEAR(of_all[e].factor, std::clamp(1.0 + 0.025 * lead, 0.95, 1.05), 1e-6) << e;
  }
  // A step without slots leaves all as it is; an expert that had none so far has factor 1.
  bias.update_history(std::vector<int64_t>(9, 0));
  EXPECT_NEAR(bias.history().front()[0].record.success, success[0], 1e-15);
}

}  // namespace
}  // namespace cadre::router_bias_test
