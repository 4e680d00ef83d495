// SPDX-License-Identifier: Apache-2.0
// What single rules of a router decide, against their definitions in plain form.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/support/router_cases.hpp"

namespace cadre::router_rules_test {
namespace {

using test::kHidden;
using test::kTokens;
using test::layer_case_of;
using test::LayerCase;
using test::LayerResult;
using test::LayerRun;
using test::router;
using test::RouterCase;
using test::Values;
using test::with;

// The gradient of a binary gate is that of the plain scores.
TEST(RouterRules, a_binary_gate_passes_the_gradient_straight_through) {
  const std::vector<double> scores = {0.5, 0.3, 0.15, 0.05};
  std::vector<int32_t> ids = {0, 2};
  std::vector<double> weights(2), dweights = {2.0, -3.0}, dscores(4);
  const auto at = [](auto& values, DType type) {
    return Tensor(const_cast<double*>(values.data()), type, {1, static_cast<int64_t>(values.size())});
  };
  const Tensor chosen(ids.data(), DType::i32, {1, 2});
  for (const bool renormalise : {false, true}) {
    const WeightOptions options = {.renormalise = renormalise, .scale = 1.5, .gate = GateKind::binary};
    routing_weights(options, at(scores, DType::f64), chosen, at(weights, DType::f64));
    routing_weights_grad(options, at(scores, DType::f64), chosen, at(dweights, DType::f64), at(dscores, DType::f64));
    const double each = renormalise ? 0.75 : 1.5;
    EXPECT_EQ(weights, (std::vector{each, each}));
    EXPECT_EQ(dscores, (std::vector{2.0 * each, 0.0, -3.0 * each, 0.0}));
  }
}

// The two best of d0_t d1_e exp(logit_te), where rows and columns have equal sums: the iteration of Sinkhorn, in plain form.
TEST(RouterRules, sinkhorn_chooses_from_the_balanced_matrix) {
  test::alone(layer_case_of({"sinkhorn", with([](RouterOptions& o) { o.select.rule = SelectRule::sinkhorn; })}),
              [](LayerRun& run) {
                run.loss();
                const Values logits = test::values_of(run.saved().router.logits);
                std::vector<double> rows(kTokens, 1.0), columns(8, 1.0);
                for (int iteration = 0; iteration < 1000; ++iteration) {
                  for (size_t t = 0; t < kTokens; ++t) {
                    double sum = 0.0;
                    for (size_t e = 0; e < 8; ++e) sum += columns[e] * std::exp(logits[8 * t + e]);
                    rows[t] = 1.0 / (kTokens * sum);
                  }
                  for (size_t e = 0; e < 8; ++e) {
                    double sum = 0.0;
                    for (size_t t = 0; t < kTokens; ++t) sum += rows[t] * std::exp(logits[8 * t + e]);
                    columns[e] = 1.0 / (8 * sum);
                  }
                }
                std::vector<int32_t> expected;
                size_t unlike_scores = 0;
                for (size_t t = 0; t < kTokens; ++t) {
                  std::vector<int32_t> order(8);
                  std::iota(order.begin(), order.end(), 0);
                  std::ranges::sort(order, std::greater(), [&](int32_t e) {
                    return std::log(columns[static_cast<size_t>(e)]) + logits[8 * t + static_cast<size_t>(e)];
                  });
                  expected.insert(expected.end(), order.begin(), order.begin() + 2);
                  const auto best = std::max_element(&logits[8 * t], &logits[8 * t] + 8) - &logits[8 * t];
                  unlike_scores += order[0] != best ? 1 : 0;
                }
                EXPECT_EQ(run.ids(), expected);
                EXPECT_GT(unlike_scores, 0U);
              });
}

// Experts choose where the fullest has more than 1 + hybrid_load times the mean: load = max / mean - 1.
TEST(RouterRules, a_hybrid_changes_sides_at_its_load) {
  const auto counts_of = [](const RouterOptions& options) {
    std::vector<int64_t> counts;
    test::alone(layer_case_of({"hybrid", options}), [&](LayerRun& run) {
      run.loss();
      counts = run.counts();
    });
    return counts;
  };
  const std::vector<int64_t> by_tokens = counts_of(router());
  const double load = static_cast<double>(std::ranges::max(by_tokens)) / 6.0 - 1.0;  // 24 * 2 / 8 on average
  const auto hybrid = [](double at) {
    return with([at](RouterOptions& o) { o.select = {.rule = SelectRule::hybrid, .hybrid_load = at}; });
  };
  EXPECT_EQ(counts_of(hybrid(load + 0.001)), by_tokens);
  EXPECT_EQ(counts_of(hybrid(load - 0.001)), std::vector<int64_t>(8, 6));
}

// With the default: an even gate, whose fullest expert has less than 1.8 times the mean, leaves the choice to tokens; one that
// sends most tokens to two experts does not.
TEST(RouterRules, a_hybrid_takes_either_side_by_default) {
  const auto counts_of = [](double lean, const std::vector<int>& dead, SelectRule rule) {
    RouterCase hybrid = {"hybrid", with(
                                       [&](RouterOptions& o) {
                                         o.select.rule = rule;
                                         o.selection_bias = true;
                                         o.dead_experts = dead;
                                       },
                                       4)};
    LayerCase layer_case = layer_case_of(hybrid);
    layer_case.prepare = [lean](Parameter& parameter) {
      if (!parameter.name().ends_with("e_score_correction_bias")) return;
      for (int e = 0; e < 2; ++e) parameter.value.data<double>()[e] = lean;
    };
    std::vector<int64_t> counts;
    test::alone(layer_case, [&](LayerRun& run) {
      run.loss();
      counts = run.counts();
    });
    return counts;
  };
  const auto by_tokens = [&](double lean, const std::vector<int>& dead) {
    return counts_of(lean, dead, SelectRule::token_choice);
  };
  const auto hybrid = [&](double lean, const std::vector<int>& dead) {
    return counts_of(lean, dead, SelectRule::hybrid);
  };
  EXPECT_LT(std::ranges::max(by_tokens(0.0, {})), 1.8 * 12);
  EXPECT_EQ(hybrid(0.0, {}), by_tokens(0.0, {}));
  EXPECT_GT(std::ranges::max(by_tokens(1.0, {})), 1.8 * 12);
  EXPECT_EQ(hybrid(1.0, {}), std::vector<int64_t>(8, 12));
  // Half of the experts dead: the mean is that of the living, 24.
  const std::vector<int> dead = {4, 5, 6, 7};
  EXPECT_LT(std::ranges::max(by_tokens(0.0, dead)), 1.8 * 24);
  EXPECT_GT(std::ranges::max(by_tokens(0.0, dead)), 1.8 * 12);
  EXPECT_EQ(hybrid(0.0, dead), by_tokens(0.0, dead));
}

// Divided by itself its weight would be 1, and no gradient would reach the inner gate.
TEST(RouterRules, a_single_inner_expert_is_not_divided_by_itself) {
  RouterCase mixtures = {"mixtures", router()};
  mixtures.kinds = ExpertKinds::mixture;
  LayerCase layer_case = layer_case_of(mixtures);
  layer_case.options.inner_top_k = 1;
  test::alone(layer_case, [](LayerRun& run) {
    run.run();
    double largest = 0.0;
    for (int e = 0; e < 8; ++e) {
      for (const double grad : test::values_of(run.parameter(fmt::format("mlp.experts.{}.gate.weight", e)).grad)) {
        largest = std::max(largest, std::abs(grad));
      }
    }
    EXPECT_GT(largest, 1e-3);
  });
}

// Which slots have no room, by the definitions of DropPolicy, one slot after the other.
TEST(RouterRules, capacities_drop_what_their_policy_says) {
  for (const DropPolicy policy : {DropPolicy::position, DropPolicy::probability}) {
    RouterCase router_case = {"full", with([](RouterOptions& o) { o.selection_bias = true; })};
    std::vector<int32_t> ids;
    Values scores;
    test::alone(layer_case_of(router_case), [&](LayerRun& run) {
      run.loss();
      ids = run.ids();
      scores = test::values_of(run.saved().router.scores);
    });
    std::vector<size_t> order;  // all first choices, then all second ones
    for (size_t k = 0; k < 2; ++k) {
      for (size_t t = 0; t < kTokens; ++t) order.push_back(2 * t + k);
    }
    const auto score = [&](size_t slot) { return scores[slot / 2 * 8 + static_cast<size_t>(ids[slot])]; };
    if (policy == DropPolicy::probability) {
      std::ranges::sort(order, [&](size_t a, size_t b) { return score(a) > score(b); });
    }
    std::vector<int> room(8, 5);  // ceil(0.8 * 24 * 2 / 8)
    std::vector<int32_t> kept(ids.size(), -1);
    for (const size_t slot : order) {
      if (room[static_cast<size_t>(ids[slot])]-- > 0) kept[slot] = ids[slot];
    }
    EXPECT_NE(kept, ids);
    router_case.router.capacity = {.factor = 0.8, .drop = policy};
    EXPECT_EQ(single_rank(layer_case_of(router_case)).ids, kept);
  }
}

// With every routed expert gone, y = shared(x): what one gets when the routed weights are zero.
TEST(RouterRules, without_living_experts_the_shared_expert_remains) {
  RouterCase gone = {"gone", with([](RouterOptions& o) { o.dead_experts = {0, 1, 2, 3, 4, 5, 6, 7}; })};
  const LayerResult dead = single_rank(layer_case_of(gone));
  gone.router.dead_experts.clear();
  gone.router.weights.scale = 0.0;
  const LayerResult silent = single_rank(layer_case_of(gone));
  EXPECT_EQ(dead.y, silent.y);
  EXPECT_GT(std::abs(dead.y[0]), 0.0);
  EXPECT_EQ(dead.ids, std::vector<int32_t>(48, -1));
  const auto& grad = dead.grads.at("mlp.gate.weight");
  EXPECT_EQ(grad, Values(grad.size(), 0.0));
}

TEST(RouterRules, weights_are_shared_among_the_living) {
  RouterCase some = {"some", with(
                                 [](RouterOptions& o) {
                                   o.dead_experts = {0, 5};
                                   o.weights.renormalise = false;
                                 },
                                 6)};
  test::alone(layer_case_of(some), [](LayerRun& run) {
    run.loss();
    for (int64_t t = 0; t < kTokens; ++t) {
      const double* weights = run.saved().router.weights.data<double>() + t * 6;
      EXPECT_NEAR(std::accumulate(weights, weights + 6, 0.0), 1.0, 1e-15);  // six terms, rounded
    }
    EXPECT_GT(run.saved().router.num_rerouted, 0);
  });
}

TEST(RouterRules, expert_choice_refuses_to_decode) {
  LayerCase layer_case =
      layer_case_of({"expert choice", with([](RouterOptions& o) { o.select.rule = SelectRule::expert_choice; })});
  layer_case.training = false;
  layer_case.decoding = true;
  test::alone(layer_case, [](LayerRun& run) {
    try {
      run.loss();
      FAIL() << "it decoded";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("expert_choice cannot decode"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("not known yet"), std::string::npos) << error.what();
    }
  });
}

TEST(RouterRules, a_logit_that_is_not_finite_is_an_error_with_layer_count_and_token) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    LayerCase layer_case = layer_case_of({"plain", router()});
    layer_case.training = false;
    test::alone(layer_case, [bad](LayerRun& run) {
      run.x().data<double>()[5 * kHidden] = bad;
      run.x().data<double>()[9 * kHidden + 1] = bad;
      try {
        run.loss();
        FAIL() << "it went on";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::numerics);
        EXPECT_NE(std::string(error.what()).find("mlp.gate: 2 of 24 tokens"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("token 5 of step 3"), std::string::npos) << error.what();
      }
    });
  }
}

}  // namespace
}  // namespace cadre::router_rules_test
