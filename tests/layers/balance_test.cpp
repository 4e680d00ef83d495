// SPDX-License-Identifier: Apache-2.0
// The numbers that the source documents and papers give for balance losses and capacities.
#include <gtest/gtest.h>

#include <cmath>

#include "layers/router/capacity.hpp"
#include "layers/router/loss_terms.hpp"
#include "tests/support/layer_run.hpp"

namespace cadre::balance_test {
namespace {

using test::LayerCase;
using test::LayerRun;

TEST(Balance, kl_to_uniform_of_the_worked_example) {
  const std::vector<double> before = {.30, .25, .15, .10, .08, .06, .04, .02};
  const std::vector<double> after = {.14, .13, .12, .13, .12, .13, .11, .12};
  // Ten digits are given.
  EXPECT_NEAR(kl_to_uniform(before).value, 0.2789911754, 5e-11);
  EXPECT_NEAR(kl_to_uniform(before).value / std::log(2.0), 0.4024991852, 5e-11);
  EXPECT_NEAR(kl_to_uniform(after).value, 0.0024045052, 5e-11);
  EXPECT_EQ(kl_to_uniform(std::vector<double>(8, 0.125)).value, 0.0);
  EXPECT_NEAR(kl_to_uniform(std::vector<double>{1.0, 0.0}).value, std::log(2.0), 1e-15);
}

TEST(Balance, squared_cv_of_the_worked_example) {
  const std::vector<double> counts = {30, 25, 15, 10, 8, 6, 4, 2};
  EXPECT_NEAR(squared_cv(counts, Variance::unbiased).value, 0.6582857, 5e-8);  // seven digits are given
  EXPECT_NEAR(squared_cv(counts, Variance::population).value, 0.576, 1e-15);
  const std::vector<double> after = {.14, .13, .12, .13, .12, .13, .11, .12};
  EXPECT_NEAR(squared_cv(after, Variance::population).value, 0.0048, 1e-12);
  EXPECT_EQ(squared_cv(std::vector<double>(4, 0.0), Variance::population).value, 0.0);
  // As they are: 0.576 * 12.5^2, and that times 8 / 7.
  EXPECT_NEAR(variance_of(counts, Variance::population).value, 90.0, 1e-12);
  EXPECT_NEAR(variance_of(counts, Variance::unbiased).value, 720.0 / 7.0, 1e-12);
  EXPECT_EQ(variance_of(std::vector<double>{3.0}, Variance::unbiased).value, 0.0);
}

TEST(Balance, devices_have_neighbouring_experts_as_even_as_possible) {
  const std::vector<double> numbers = {1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(by_device(numbers, 3), (std::vector<double>{6, 9, 13}));
  EXPECT_EQ(by_expert(std::vector<double>{1, 2, 3}, 7), (std::vector<double>{1, 1, 1, 2, 2, 3, 3}));
  // Or those of one remainder.
  EXPECT_EQ(by_device(numbers, 3, DeviceLayout::cyclic), (std::vector<double>{1 + 4 + 7, 2 + 5, 3 + 6}));
  EXPECT_EQ(by_expert(std::vector<double>{1, 2, 3}, 7, DeviceLayout::cyclic),
            (std::vector<double>{1, 2, 3, 1, 2, 3, 1}));
}

// A gate that says nothing: every score is the same, and each of these losses is its weight.
TEST(Balance, an_even_gate_costs_the_weight_itself) {
  for (const bool by_sequence : {false, true}) {
    for (const ScoreFunction score : {ScoreFunction::softmax, ScoreFunction::sigmoid}) {
      LayerCase layer_case = {.options = {.hidden = 10, .expert_width = 3}, .sequence_length = 6};
      layer_case.options.router = {.hidden = 10,
                                   .num_experts = 8,
                                   .top_k = 2,
                                   .score = score,
                                   .init_std = 0.0,
                                   .losses = {.balance = 0.01, .by_sequence = by_sequence}};
      test::alone(layer_case, [](LayerRun& run) {
        run.loss();
        EXPECT_NEAR(run.saved().balance_loss, 0.01, 1e-15);
      });
    }
  }
  LayerCase layer_case = {.options = {.hidden = 10, .expert_width = 3}};
  layer_case.options.router = {
      .hidden = 10, .num_experts = 8, .top_k = 2, .init_std = 0.0, .losses = {.kl = 1.0, .expert = 0.003}};
  test::alone(layer_case, [](LayerRun& run) {
    run.loss();
    EXPECT_NEAR(run.saved().balance_loss, 0.003, 1e-15);  // KL is 0
  });
}

// logits 0: log(8)^2
TEST(Balance, z_of_an_even_gate_is_the_square_of_log_experts) {
  LayerCase layer_case = {.options = {.hidden = 10, .expert_width = 3}};
  layer_case.options.router = {.hidden = 10, .num_experts = 8, .top_k = 2, .init_std = 0.0, .losses = {.z = 0.5}};
  test::alone(layer_case, [](LayerRun& run) {
    run.loss();
    EXPECT_NEAR(run.saved().balance_loss, 0.5 * std::log(8.0) * std::log(8.0), 1e-14);
  });
}

// The expected load of noisy top-k is a smooth count: over all experts it is near K a token.
TEST(Balance, noisy_load_counts_about_k_experts_a_token) {
  LayerCase layer_case = {.options = {.hidden = 10, .expert_width = 3}, .num_tokens = 600};
  layer_case.options.router = {
      .hidden = 10, .num_experts = 8, .top_k = 2, .init_std = 0.5, .scorer = {.hidden_sizes = {}, .noise = true}};
  test::alone(layer_case, [](LayerRun& run) {
    run.loss();
    const std::vector<double> load = noisy_load(run.saved().router.scorer, 2);
    double sum = 0.0;
    for (const double of_expert : load) sum += of_expert;
    // The mean of 600 tokens, each within [0, 8] and off by about one: three standard errors of 0.05.
    EXPECT_NEAR(sum / 600.0, 2.0, 0.15);
  });
}

TEST(Capacity, dynamic_capacity_follows_the_utilisation) {
  EXPECT_EQ(dynamic_capacity(20, 0.49), 16);
  EXPECT_EQ(dynamic_capacity(20, 0.5), 20);
  EXPECT_EQ(dynamic_capacity(20, 1.5), 20);
  EXPECT_EQ(dynamic_capacity(20, 1.51), 24);
  EXPECT_EQ(dynamic_capacity(19, 0.1), 15);  // int(15.2)
}

struct Learned {
  explicit Learned(const CapacityOptions& options) : capacity("gate", 4, 2, options) {
    store.add_all(capacity);
    store.allocate(DType::f64, false, false);
    store.initialise(1);
  }
  Capacity capacity;
  ParameterStore store;
  const double* state() const { return store.parameters().front()->value.data<double>(); }
};

TEST(Capacity, utilisation_is_a_running_mean_in_relative_units) {
  Learned learned({.factor = 1.25, .kind = CapacityKind::dynamic});
  EXPECT_EQ(learned.capacity.capacities(1.25, 64), std::vector<int64_t>(4, 40));  // ceil(1.25 * 64 * 2 / 4)
  learned.capacity.update(std::vector<int64_t>{400, 0, 0, 0});                    // four times the mean, and nothing
  EXPECT_NEAR(learned.state()[0], 0.3, 1e-15);                                    // 1 + 0.1 (4 - 1), less 1
  EXPECT_NEAR(learned.state()[1], -0.1, 1e-15);
  for (int step = 0; step < 7; ++step) learned.capacity.update(std::vector<int64_t>{4, 0, 0, 0});
  // 0.9^8 = 0.43 is left of 1
  EXPECT_EQ(learned.capacity.capacities(1.25, 64), (std::vector<int64_t>{48, 32, 32, 32}));
}

TEST(Capacity, learned_shares_of_a_fixed_sum_follow_the_demand) {
  Learned learned({.factor = 1.0, .kind = CapacityKind::learned, .rate = 0.05});
  EXPECT_EQ(learned.capacity.capacities(1.0, 64), std::vector<int64_t>(4, 32));
  EXPECT_EQ(learned.capacity.capacities(1.5, 64), std::vector<int64_t>(4, 48));  // ceil(1.5 * 64 * 2 / 4 * E / E)
  for (int step = 0; step < 60; ++step) learned.capacity.update(std::vector<int64_t>{4, 2, 1, 1});
  const std::vector<int64_t> capacities = learned.capacity.capacities(1.0, 64);
  // 128 slots are asked for as 64 32 16 16; steps of 0.05 in a logarithm leave each within a tenth.
  const std::vector<double> asked = {64, 32, 16, 16};
  for (size_t e = 0; e < 4; ++e) EXPECT_NEAR(static_cast<double>(capacities[e]), asked[e], 0.1 * asked[e] + 1.0);
}

TEST(Capacity, a_factor_is_rounded_up) {
  const Capacity capacity("gate", 3, 1, {.factor = 1.0});
  EXPECT_EQ(capacity.capacities(1.0, 10), std::vector<int64_t>(3, 4));
  EXPECT_EQ(capacity.capacities(1.0, 9), std::vector<int64_t>(3, 3));
  EXPECT_EQ(capacity.capacities(1.25, 0), std::vector<int64_t>(3, 0));
}

}  // namespace
}  // namespace cadre::balance_test
