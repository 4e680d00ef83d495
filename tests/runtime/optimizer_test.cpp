// SPDX-License-Identifier: Apache-2.0
// AdamW and clipping against numbers of fp64 arithmetic outside of the program (NumPy), with their formulas.
#include "runtime/optim/optimizer.hpp"

#include <gtest/gtest.h>

namespace cadre::optimizer_test {
namespace {

// Steps t = 1, 2, 3 with g = 0.5 grad: m = 0.9 m + 0.1 g, v = 0.95 v + 0.05 g^2,
// w -= 0.01 (m / (1 - 0.9^t) / (sqrt(v / (1 - 0.95^t)) + 1e-8) + decay w)
TEST(Optimizer, three_steps_with_and_without_decay) {
  constexpr double kGrads[3][2] = {{0.4, -1.2}, {-0.6, 0.2}, {1.0, 0.8}};
  constexpr double kDecayed[] = {0.9854779870506, -1.978616283569};    // decay 0.1
  constexpr double kNotDecayed[] = {0.9884574631823, -1.98458484496};  // 0: norms and biases
  Parameter weight = make_weight({{"weight", 1}}, 2, 0.0);
  Parameter gain = make_vector("gain", 2, Init::Kind::zeros);
  ParameterStore store;
  store.add(weight);
  store.add(gain);
  store.allocate(DType::f64, /*with_grad=*/true, /*dry_run=*/false);
  TrainConfig config;
  config.weight_decay = 0.1;
  Optimizer optimizer(store, config);
  for (Parameter* parameter : {&weight, &gain}) {
    parameter->value.data<double>()[0] = 1.0;
    parameter->value.data<double>()[1] = -2.0;
  }
  const auto kernels = make_reference_kernels();
  for (int64_t step = 1; step <= 3; ++step) {
    for (Parameter* parameter : {&weight, &gain}) {
      for (int i = 0; i < 2; ++i) parameter->grad.data<double>()[i] = kGrads[step - 1][i];
    }
    optimizer.update(*kernels, 0.01, 0.5, step);
  }
  for (int i = 0; i < 2; ++i) {
    EXPECT_NEAR(weight.value.data<double>()[i], kDecayed[i], 2e-12) << i;  // thirteen digits are given
    EXPECT_NEAR(gain.value.data<double>()[i], kNotDecayed[i], 2e-12) << i;
  }
}

// min(1, limit / norm); 0 is off
TEST(Optimizer, clipping_brings_the_norm_to_the_limit) {
  EXPECT_DOUBLE_EQ(clip_factor(4.0, 1.0), 0.25);
  EXPECT_DOUBLE_EQ(clip_factor(0.5, 0.2), 0.4);
  EXPECT_EQ(clip_factor(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_factor(1.0, 1.0), 1.0);
  EXPECT_EQ(clip_factor(7.0, 0.0), 1.0);
}

}  // namespace
}  // namespace cadre::optimizer_test
