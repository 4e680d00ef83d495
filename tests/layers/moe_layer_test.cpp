// SPDX-License-Identifier: Apache-2.0
// The distributed layer with every exchange against the same layer on one rank, and that one against central differences,
// all in fp64. The routers themselves are in moe_routers_test.cpp.
#include "layers/moe/moe_layer.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/gradient_check.hpp"
#include "tests/support/layer_run.hpp"

namespace cadre::moe_layer_test {
namespace {

using test::LayerCase;
using test::LayerResult;
using test::LayerRun;
using test::Values;

constexpr int64_t kHidden = 10;  // rows large enough to be read in place
constexpr int64_t kWidth = 5;
constexpr int64_t kTokens = 22;  // of all ranks together

struct Case {
  const char* name;
  int num_experts = 8;
  int top_k = 2;
  ScoreFunction score = ScoreFunction::softmax;
  bool renormalise = true;
  Activation activation = Activation::silu;
  bool shared = true;
  bool bias = false;
  CombineMode combine = CombineMode::partial;
  bool first_rank_empty = false;
  GroupLimit groups = {};
  bool all_to_one = false;  // the bias sends every token to expert 1 (and 2)
};

const Case kCases[] = {
    {.name = "softmax top-2"},
    {.name = "sigmoid with bias, gelu", .score = ScoreFunction::sigmoid, .activation = Activation::gelu, .bias = true},
    {.name = "ten experts, relu, no shared expert",
     .num_experts = 10,
     .top_k = 3,
     .activation = Activation::relu,
     .shared = false},
    {.name = "not renormalised, slot order", .renormalise = false, .combine = CombineMode::slot_order},
    {.name = "rank 0 without tokens", .combine = CombineMode::slot_order, .first_rank_empty = true},
    {.name = "all tokens to one expert",
     .top_k = 1,
     .score = ScoreFunction::sigmoid,
     .renormalise = false,
     .bias = true,
     .all_to_one = true},
    {.name = "all tokens to two experts", .score = ScoreFunction::sigmoid, .bias = true, .all_to_one = true},
    {.name = "two of four groups",
     .top_k = 3,
     .score = ScoreFunction::sigmoid,
     .bias = true,
     .groups = {.groups = 4, .kept = 2, .summed = 2}},
    {.name = "fewer experts than ranks, all chosen", .num_experts = 2, .top_k = 2, .first_rank_empty = true},
};

MoeOptions options_of(const Case& test_case) {
  return {.hidden = kHidden,
          .expert_width = kWidth,
          .shared_width = test_case.shared ? 7 : 0,
          .activation = test_case.activation,
          .init_std = 0.5,
          .router = {.hidden = kHidden,
                     .num_experts = test_case.num_experts,
                     .top_k = test_case.top_k,
                     .score = test_case.score,
                     .weights = {.renormalise = test_case.renormalise, .scale = 1.5},
                     .groups = test_case.groups,
                     .selection_bias = test_case.bias,
                     .init_std = 0.5,
                     .losses = {.balance = 0.3}}};
}

LayerCase layer_case_of(const Case& test_case) {
  LayerCase layer_case = {.options = options_of(test_case),
                          .num_tokens = kTokens,
                          .combine = test_case.combine,
                          .first_rank_empty = test_case.first_rank_empty};
  if (!test_case.all_to_one) return layer_case;
  layer_case.prepare = [](Parameter& parameter) {
    if (parameter.placement != Placement::buffer) return;
    parameter.value.data<double>()[1] = 100.0;
    parameter.value.data<double>()[2] = 50.0;
  };
  return layer_case;
}

// Forward and backward with every exchange strategy on every number of ranks.
void each_strategy(const Case& test_case, const std::function<void(LayerRun&, Communicator&)>& check_run) {
  test::on_ranks([&](Communicator& world) {
    for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
      SCOPED_TRACE(variant.describe());
      LayerRun run(layer_case_of(test_case), world, variant);
      run.run();
      check_run(run, world);
    }
  });
}

TEST(MoeLayer, equals_the_single_rank_layer_on_any_number_of_ranks) {
  for (const Case& test_case : kCases) {
    SCOPED_TRACE(test_case.name);
    const LayerResult reference = single_rank(layer_case_of(test_case));
    each_strategy(test_case, [&](LayerRun& run, Communicator& world) { expect_same(reference, run, world, kHidden); });
  }
}

TEST(MoeLayer, gradients_equal_central_differences) {
  for (const Case& test_case : kCases) {
    SCOPED_TRACE(test_case.name);
    test::alone(layer_case_of(test_case), [](LayerRun& run) {
      run.run();
      const auto loss = [&run] { return run.loss(); };
      const Values dx = test::values_of(run.dx());
      test::expect_gradient("x", loss, run.x(), Tensor(const_cast<double*>(dx.data()), DType::f64, {kTokens, kHidden}));
      for (const Parameter* parameter : run.parameters()) {
        if (!parameter->grad.defined()) continue;
        const Values grad = test::values_of(parameter->grad);
        if (std::all_of(grad.begin(), grad.end(), [](double g) { return g == 0.0; })) {
          // An expert that no token chose: its gradient is exactly zero.
          EXPECT_EQ(parameter->placement, Placement::expert) << parameter->name();
          continue;
        }
        test::expect_gradient(parameter->name(), loss, parameter->value, parameter->grad);
      }
    });
  }
}

TEST(MoeLayer, cases_are_what_they_say) {
  for (const Case& test_case : kCases) {
    test::alone(layer_case_of(test_case), [&test_case](LayerRun& run) {
      run.run();
      const auto num_used = std::count_if(run.counts().begin(), run.counts().end(), [](int64_t c) { return c > 0; });
      EXPECT_EQ(std::accumulate(run.counts().begin(), run.counts().end(), int64_t{0}), kTokens * test_case.top_k);
      EXPECT_EQ(num_used == test_case.top_k, test_case.all_to_one || test_case.num_experts == test_case.top_k);
    });
  }
}

TEST(MoeLayer, slot_order_gives_the_same_bits_for_any_spread_of_experts) {
  const LayerResult reference = single_rank(layer_case_of(kCases[3]));
  each_strategy(kCases[3], [&](LayerRun& run, Communicator& /*world*/) {
    const auto [first, count] = run.slice();
    for (int64_t i = 0; i < count * kHidden; ++i) {
      ASSERT_EQ(reference.y[first * kHidden + i], run.y().data<double>()[i]);
      ASSERT_EQ(reference.dx[first * kHidden + i], run.dx().data<double>()[i]);
    }
  });
}

}  // namespace
}  // namespace cadre::moe_layer_test
