// SPDX-License-Identifier: Apache-2.0
// Every balance loss of eight tokens is its formula.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/eight_tokens.hpp"

namespace cadre::router_losses_test {
namespace {

using test::biased_sigmoid;
using test::case_of;
using test::kGiven;
using test::kLogits;
using test::LayerRun;
using test::routed;
using test::Values;

struct LossCase {
  const char*
      formula;  // c_e slots of e, p_e mean of s / sum of s, s_e mean score, f_e = E c_e / (K T), E_d experts of d
  LossOptions losses;
  double softmax, biased_sigmoid;  // with the choices above
};

// Devices are neighbouring experts: 2 2 2 of three, 2 2 1 1 of four.
const LossCase kLosses[] = {
    {"E sum_e c_e / (sum c) p_e", {.balance = 1.0}, 1.135928018390, 1.060377081394},
    {"mean over sequences of sum_e f_e p_e of their own, f by the K best scores without bias",
     {.balance = 1.0, .by_sequence = true},
     1.311453087743,
     1.147945785992},
    {"sum_e p_e log(E p_e)", {.kl = 1.0}, 0.043866931872, 0.011831585145},
    {"population variance / mean^2 of the sums of weights", {.importance = 1.0}, 0.325009808025, 0.737259113770},
    {"sum_e f_e s_e", {.expert = 1.0}, 1.135928018390, 3.013554326812},
    {"sum_d (mean of f over E_d) (sum of s over E_d)", {.device = 1.0, .devices = 4}, 1.100050109594, 2.957087997648},
    {"sum_d D / (M T) (tokens with an expert in E_d) (sum of s over E_d), D = 3, M = 2",
     {.communication = 1.0, .devices = 3, .devices_a_token = 2},
     0.996482967641,
     2.969537052813},
    {"population variance / mean^2 of p", {.expert_variance = 1.0}, 0.081908696914, 0.022156815387},
    {"unbiased variance / mean^2 of the sums of p over E_d, D = 3",
     {.device_variance = 1.0, .devices = 3},
     0.088053620872,
     0.022583967477},
    {"population variance of the sums of weights",
     {.importance = 1.0, .importance_form = {VarianceForm::Kind::raw, Variance::population}},
     0.577795214267,
     1.310682868925},
    {"unbiased variance of the sums of weights",
     {.importance = 1.0, .importance_form = {VarianceForm::Kind::raw, Variance::unbiased}},
     0.693354257121,
     1.572819442710},
    {"unbiased variance / mean^2 of the sums of weights",
     {.importance = 1.0, .importance_form = {VarianceForm::Kind::cv2, Variance::unbiased}},
     0.390011769631,
     0.884710936524},
    {"unbiased variance / mean^2 of p",
     {.expert_variance = 1.0, .expert_form = {VarianceForm::Kind::cv2, Variance::unbiased}},
     0.098290436297,
     0.026588178465},
    {"population variance of c / (T K / E)^2",
     {.expert_variance = 1.0, .expert_form = {VarianceForm::Kind::counts, Variance::population}},
     0.265625000000,
     0.921875000000},
    {"unbiased variance of c / (T K / E)^2",
     {.expert_variance = 1.0, .expert_form = {VarianceForm::Kind::counts, Variance::unbiased}},
     0.318750000000,
     1.106250000000},
    {"population variance / mean^2 of the sums of p over E_d, D = 3",
     {.device_variance = 1.0, .devices = 3, .device_form = {VarianceForm::Kind::cv2, Variance::population}},
     0.058702413915,
     0.015055978318},
    {"unbiased variance of the sums of c over E_d / (T K / D)^2, D = 3",
     {.device_variance = 1.0, .devices = 3, .device_form = {VarianceForm::Kind::counts, Variance::unbiased}},
     0.152343750000,
     0.222656250000},
    {"unbiased variance / mean^2 of the sums of p over e mod 4",
     {.device_variance = 1.0, .devices = 4, .layout = DeviceLayout::cyclic},
     0.421664874803,
     0.269642798423},
    {"population variance of the sums of c over e mod 4 / (T K / 4)^2",
     {.device_variance = 1.0,
      .devices = 4,
      .layout = DeviceLayout::cyclic,
      .device_form = {VarianceForm::Kind::counts, Variance::population}},
     0.531250000000,
     0.781250000000},
    {"sum_d (mean of f over E_d) (sum of s over E_d), E_d = e mod 4",
     {.device = 1.0, .devices = 4, .layout = DeviceLayout::cyclic},
     1.124766704690,
     2.996494273255},
    {"sum_d D / (M T) (tokens with an expert in E_d) (sum of s over E_d), E_d = e mod 4, M = 2",
     {.communication = 1.0, .devices = 4, .devices_a_token = 2, .layout = DeviceLayout::cyclic},
     1.178405619407,
     3.174384642195},
    {"mean over tokens of log(sum_e exp x_e)^2", {.z = 1.0}, 4.056347401600, 4.056347401600},
};

TEST(RouterValues, every_loss_is_its_formula) {
  for (const LossCase& loss : kLosses) {
    EXPECT_NEAR(routed([&](RouterOptions& o) { o.losses = loss.losses; }).loss, loss.softmax, kGiven) << loss.formula;
    EXPECT_NEAR(routed([&](RouterOptions& o) {
                  biased_sigmoid(o);
                  o.losses = loss.losses;
                }).loss,
                loss.biased_sigmoid, kGiven)
        << loss.formula;
  }
}

// c = T K p where counts have no derivative: dL/dp_e = T K 2 (c_e - mean) / (n ideal^2), n of the variance, p_e the mean of
// s_te, s = softmax(x). Of the first two tokens.
TEST(RouterValues, counts_have_the_gradient_of_the_counts_that_scores_expect) {
  const auto by_logits = [](const LossOptions& losses) {
    const auto gradient = [&](const LossOptions& some) {
      Values dx;
      test::alone(case_of([&](RouterOptions& o) { o.losses = some; }), [&](LayerRun& run) {
        std::ranges::copy(kLogits, run.x().data<double>());
        run.run();
        dx = test::values_of(run.dx());
      });
      return dx;
    };
    Values difference = gradient(losses);
    const Values without = gradient({});
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= without[i];
    return difference;
  };
  const Values experts =
      by_logits({.expert_variance = 1.0, .expert_form = {VarianceForm::Kind::counts, Variance::population}});
  const Values devices = by_logits({.device_variance = 1.0,
                                    .devices = 4,
                                    .layout = DeviceLayout::cyclic,
                                    .device_form = {VarianceForm::Kind::counts, Variance::unbiased}});
  const Values of_experts = {0.00888369273,   0.001580986918,  0.00129440261,  -0.01385201378,
                             0.006581201441,  -0.004488269919, 0.007121449172, -0.003861459883,
                             -0.009497658741, -0.003897019428, 0.021394015644, -0.011259326766};
  const Values of_devices = {0.026102825087, 0.015030181381,  -0.043343219869, -0.018967777363,
                             0.019337448436, 0.001840542328,  0.020370838286,  -0.009611786103,
                             -0.05598929705, -0.006355349286, 0.061197380257,  -0.009611786103};
  for (size_t i = 0; i < of_experts.size(); ++i) {
    EXPECT_NEAR(experts[i], of_experts[i], 1e-11)
        << i;  // twelve places are given, of differences of numbers of order one
    EXPECT_NEAR(devices[i], of_devices[i], 1e-11) << i;
  }
}

}  // namespace
}  // namespace cadre::router_losses_test
