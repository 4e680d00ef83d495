// SPDX-License-Identifier: Apache-2.0
// Routers and balance losses on eight tokens with given logits, against numbers from fp64 arithmetic of their own (NumPy)
// that stand beside their formulas. The gate is the identity, so the logits are the input.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "layers/router/noisy_load.hpp"
#include "tests/support/layer_run.hpp"

namespace cadre {
namespace {

using test::LayerCase;
using test::LayerRun;
using test::Values;
using Ids = std::vector<int32_t>;

constexpr int kTokens = 8;        // T, two sequences of 4
constexpr int kExperts = 6;       // E
constexpr double kGiven = 1e-10;  // twelve places are given, of numbers of order one

// x[T,E]
constexpr double kLogits[] = {0.0,  1.5,  1.3,  -0.6, -0.3, -0.6, 0.6,  -0.1, 0.8,  -2.0, 1.7,  -0.1,
                              0.7,  -0.2, -0.4, 0.5,  0.9,  -0.2, -0.2, 0.8,  -1.0, -1.7, 0.4,  -0.7,
                              -2.1, -0.9, -0.5, -1.3, -1.6, 0.0,  1.0,  -0.3, -0.8, 0.4,  0.8,  -0.3,
                              0.6,  1.1,  -0.2, -0.9, 0.4,  0.3,  1.2,  -1.4, -0.7, -0.9, -1.9, 0.1};
constexpr double kBias[] = {0.30, -0.20, 0.0, 0.15, -0.10, 0.05};

// The two best of softmax(x), and of sigmoid(x) + bias.
const Ids kBestTwo = {1, 2, 4, 2, 4, 0, 1, 4, 5, 2, 0, 4, 1, 0, 0, 5};
const Ids kBestTwoBiased = {0, 2, 0, 4, 0, 3, 0, 4, 5, 0, 0, 3, 0, 5, 0, 5};

using Change = std::function<void(RouterOptions&)>;

LayerCase case_of(const Change& change) {
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

Found routed(const Change& change) {
  Found found;
  test::alone(case_of(change), [&](LayerRun& run) {
    std::ranges::copy(kLogits, run.x().data<double>());
    run.loss();
    found = {run.ids(), test::values_of(run.saved().router.weights), run.saved().balance_loss};
  });
  return found;
}

// ids[T,K] of which `expected` has the first of each token; the others are -1.
void expect_weights(const Found& found, const Values& expected) {
  ASSERT_EQ(found.weights.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (found.ids[i] < 0) continue;
    EXPECT_NEAR(found.weights[i], expected[i], 5e-11) << "slot " << i;  // ten places are given
  }
}

void biased_sigmoid(RouterOptions& options) {
  options.score = ScoreFunction::sigmoid;
  options.selection_bias = true;
}

// w_k = 2.5 s_k / sum of the chosen s, s = softmax(x)
TEST(RouterValues, softmax_of_the_two_best) {
  const Found found = routed([](RouterOptions& o) { o.weights.scale = 2.5; });
  EXPECT_EQ(found.ids, kBestTwo);
  expect_weights(found, {1.3745849933, 1.1254150067, 1.7773737566, 0.7226262434, 1.3745849933, 1.1254150067,
                         1.4967191503, 1.0032808497, 1.556148328, 0.943851672, 1.3745849933, 1.1254150067, 1.556148328,
                         0.943851672, 1.875650264, 0.624349736});
}

// chosen by s + b, w_k = 2.5 s_k / sum of the chosen s, s = sigmoid(x)
TEST(RouterValues, a_bias_chooses_and_does_not_weigh) {
  const Found found = routed([](RouterOptions& o) {
    biased_sigmoid(o);
    o.weights.scale = 2.5;
  });
  EXPECT_EQ(found.ids, kBestTwoBiased);
  expect_weights(found, {0.9721309627, 1.5278690373, 1.0824506861, 1.4175493139, 1.2942882885, 1.2057117115,
                         1.0729952582, 1.4270047418, 2.0522188862, 0.4477811138, 1.3744324995, 1.1255675005,
                         1.3229590383, 1.1770409617, 1.4853545114, 1.0146454886});
}

// The fewest of three experts whose softmax adds up to half.
TEST(RouterValues, top_p_takes_the_fewest_that_reach_it) {
  const Found found = routed([](RouterOptions& o) {
    o.top_k = 3;
    o.select.top_p = 0.5;
  });
  EXPECT_EQ(found.ids, (Ids{1, 2, -1, 4, 2, -1, 4, 0, -1, 1, 4, -1, 5, 2, -1, 0, 4, -1, 1, 0, -1, 0, -1, -1}));
}

// Each expert takes its best ceil(T K / E) = ceil(16 / 6) = 3 tokens by softmax.
TEST(RouterValues, expert_choice_rounds_its_share_up) {
  const Found found = routed([](RouterOptions& o) { o.select.rule = SelectRule::expert_choice; });
  EXPECT_EQ(found.ids, (Ids{1, 2, -1, -1, -1, -1, 4, 2, -1, -1, -1, -1, 4, 0, 3,  -1, -1, -1, 1, 4, -1, -1, -1, -1,
                            5, 2, 3,  -1, -1, -1, 0, 3, -1, -1, -1, -1, 1, 5, -1, -1, -1, -1, 0, 5, -1, -1, -1, -1}));
}

Change hierarchical(int groups, int kept, int top_k) {
  return [=](RouterOptions& o) {
    o.top_k = top_k;
    o.select.rule = SelectRule::hierarchical;
    o.groups.groups = groups;
    o.groups.kept = kept;
    o.weights.groups = groups;
  };
}

// Two of three groups by S_g = sum of softmax(x) over g, one expert of each, w_e = S_g / (sum of S over the kept).
TEST(RouterValues, hierarchical_groups_go_by_their_sum) {
  const Found found = routed(hierarchical(3, 2, 2));
  EXPECT_EQ(found.ids, (Ids{1, 2, 4, 0, 4, 0, 1, 4, 5, 2, 0, 4, 1, 4, 0, 5}));
  expect_weights(found, {0.5651343898, 0.4348656102, 0.7005234159, 0.2994765841, 0.5364804232, 0.4635195768,
                         0.604900503, 0.395099497, 0.5775685801, 0.4224314199, 0.5383428549, 0.4616571451, 0.6294085496,
                         0.3705914504, 0.739759067, 0.260240933});
}

// Both groups, two of three experts of each, w_e = S_g s_e / C_g, C_g the sum of s over the chosen of g.
TEST(RouterValues, hierarchical_weights_are_shares_of_shares) {
  const Found found = routed(hierarchical(2, 2, 4));
  EXPECT_EQ(found.ids,
            (Ids{1, 2, 4, 3, 4, 2, 0, 5, 4, 0, 3, 1, 1, 4, 0, 5, 5, 2, 1, 3, 0, 4, 3, 1, 1, 0, 4, 5, 0, 5, 2, 3}));
  expect_weights(
      found,
      {0.4578512567, 0.3748569042, 0.0960995451, 0.071192294,  0.4875095335, 0.237476428,  0.1944292547, 0.0805847839,
       0.3499189293, 0.2954161531, 0.2345576728, 0.1201072448, 0.4467800548, 0.2917452056, 0.1643611969, 0.0971135427,
       0.4439325593, 0.2604780475, 0.1746036568, 0.1209857364, 0.3670996016, 0.3190131658, 0.21384092,   0.1000463126,
       0.3951069874, 0.2396445017, 0.1917478665, 0.1735006444, 0.617444774,  0.2121567552, 0.0923503623, 0.0780481085});
}

// ceil(0.7 T K / E) = ceil(1.87) = 2 slots of each expert; weights are softmax shares of the two best, whatever is dropped.
TEST(RouterValues, capacity_keeps_the_most_probable_or_the_first) {
  const auto limited = [](DropPolicy drop, bool renormalise) {
    return routed([=](RouterOptions& o) { o.capacity = {.factor = 0.7, .drop = drop, .renormalise = renormalise}; });
  };
  const Ids probable = {1, 2, 4, -1, 4, -1, 1, -1, 5, 2, 0, -1, -1, -1, 0, 5};
  const Found found = limited(DropPolicy::probability, false);
  EXPECT_EQ(found.ids, probable);
  expect_weights(found, {0.5498339973, 0.4501660027, 0.7109495026, 0, 0.5498339973, 0, 0.5986876601, 0, 0.6224593312,
                         0.3775406688, 0.5498339973, 0, 0, 0, 0.7502601056, 0.2497398944});
  EXPECT_EQ(limited(DropPolicy::position, false).ids, (Ids{1, 2, 4, 2, 4, -1, 1, -1, 5, -1, 0, -1, -1, -1, 0, 5}));
  // What is left adds up to 1.
  const Found again = limited(DropPolicy::probability, true);
  EXPECT_EQ(again.ids, probable);
  expect_weights(again, {0.5498339973, 0.4501660027, 1, 0, 1, 0, 1, 0, 0.6224593312, 0.3775406688, 1, 0, 0, 0,
                         0.7502601056, 0.2497398944});
}

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

// w_k = c_k / sum of the chosen c, c = softmax(x) + 0.2 where the expert's task is the token's; c chooses too.
TEST(RouterValues, biased_scores_weigh_where_that_is_asked_for) {
  LayerCase layer_case = case_of([](RouterOptions& o) {
    o.bias = {.task = 0.2, .expert_task = {0, 1, 0, 1, 0, 1}, .num_tasks = 2, .weighs = true};
  });
  layer_case.tasks = {0, 1, 0, 1, 0, 1, -1, -1};
  test::alone(layer_case, [&](LayerRun& run) {
    std::ranges::copy(kLogits, run.x().data<double>());
    run.loss();
    EXPECT_EQ(run.ids(), (Ids{2, 1, 4, 1, 4, 0, 1, 5, 2, 5, 3, 0, 1, 0, 0, 5}));
    expect_weights({run.ids(), test::values_of(run.saved().router.weights), 0.0},
                   {0.5669393318, 0.4330606682, 0.631212991, 0.368787009, 0.5284151304, 0.4715848696, 0.6744508233,
                    0.3255491767, 0.5301916844, 0.4698083156, 0.5379766148, 0.4620233852, 0.6224593312, 0.3775406688,
                    0.7502601056, 0.2497398944});
  });
}

// At most 2 slots of each expert, whatever T K / E is: as a factor of 0.7, which is ceil(1.87).
TEST(RouterValues, a_capacity_may_be_a_number_of_tokens) {
  const Found found = routed([](RouterOptions& o) { o.capacity = {.tokens = 2}; });
  EXPECT_EQ(found.ids, (Ids{1, 2, 4, -1, 4, -1, 1, -1, 5, 2, 0, -1, -1, -1, 0, 5}));
  EXPECT_EQ(routed([](RouterOptions& o) { o.capacity = {.tokens = 8}; }).ids, kBestTwo);
}

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
}  // namespace cadre
