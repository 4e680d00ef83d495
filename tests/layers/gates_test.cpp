// SPDX-License-Identifier: Apache-2.0
// The gates of DeepSeek-V2 and V3, every topk_method with every scoring_func, against the definition written out token by
// token; what a bias does; and that a bias alone makes an uneven start even.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "layers/model/router_options.hpp"
#include "tests/support/layer_run.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::gates_test {
namespace {

using test::LayerCase;
using test::LayerRun;

constexpr int kExperts = 12;
constexpr int kTopK = 3;
constexpr int kGroups = 4;

ModelConfig gate_config(const std::string& method, const std::string& scoring, bool renormalise) {
  ModelConfig config;
  config.hidden_size = 10;
  config.n_routed_experts = kExperts;
  config.num_experts_per_tok = kTopK;
  config.n_group = kGroups;
  config.topk_group = 2;
  set_key(config, "topk_method", method);
  set_key(config, "scoring_func", scoring);
  config.norm_topk_prob = renormalise;
  config.routed_scaling_factor = 2.5;
  config.initializer_range = 0.5;
  return config;
}

// Negative and uneven, so that a mask of 0.0 instead of -infinity would choose experts of groups that are out.
double bias_of(int expert) { return -2.0 - 0.1 * static_cast<double>((expert * 7) % 5); }

struct Choice {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

Choice by_definition(const ModelConfig& config, const std::vector<double>& logits) {
  std::vector<double> s(logits);
  double sum = 0.0;
  for (double& value : s) {
    value = config.scoring_func == ScoreFunction::sigmoid ? 1.0 / (1.0 + std::exp(-value)) : std::exp(value);
    sum += value;
  }
  if (config.scoring_func == ScoreFunction::softmax) {
    for (double& value : s) value /= sum;
  }
  std::vector<double> c(s);
  const bool v3 = config.topk_method == TopkMethod::noaux_tc;
  for (int e = 0; v3 && e < kExperts; ++e) c[static_cast<size_t>(e)] += bias_of(e);
  if (config.topk_method != TopkMethod::greedy) {
    constexpr int kSize = kExperts / kGroups;
    std::vector<std::pair<double, int>> groups;
    for (int g = 0; g < kGroups; ++g) {
      std::vector<double> of_group(c.begin() + g * kSize, c.begin() + (g + 1) * kSize);
      std::ranges::sort(of_group, std::ranges::greater());
      groups.emplace_back(-(v3 ? of_group[0] + of_group[1] : of_group[0]), g);
    }
    std::ranges::sort(groups);
    for (size_t i = 2; i < kGroups; ++i) {
      std::fill_n(c.begin() + groups[i].second * kSize, kSize, -std::numeric_limits<double>::infinity());
    }
  }
  Choice choice;
  double total = 1e-20;
  for (int k = 0; k < kTopK; ++k) {
    const auto best = std::ranges::max_element(c);
    choice.ids.push_back(static_cast<int32_t>(best - c.begin()));
    choice.weights.push_back(s[static_cast<size_t>(choice.ids.back())]);
    total += choice.weights.back();
    *best = -std::numeric_limits<double>::infinity();
  }
  for (double& weight : choice.weights) weight *= 2.5 / (config.norm_topk_prob ? total : 1.0);
  return choice;
}

TEST(Gates, every_method_with_every_score_is_its_definition) {
  for (const char* method : {"greedy", "group_limited_greedy", "noaux_tc"}) {
    for (const char* scoring : {"softmax", "sigmoid"}) {
      for (const bool renormalise : {false, true}) {
        SCOPED_TRACE(testing::Message() << method << ", " << scoring << ", renormalise " << renormalise);
        const ModelConfig config = gate_config(method, scoring, renormalise);
        LayerCase layer_case = {.options = {.hidden = 10, .expert_width = 3, .router = router_options(config)}};
        layer_case.prepare = [](Parameter& parameter) {
          if (parameter.placement != Placement::buffer) return;
          for (int e = 0; e < kExperts; ++e) parameter.value.data<double>()[e] = bias_of(e);
        };
        test::alone(layer_case, [&](LayerRun& run) {
          run.loss();
          const Router::Saved& found = run.saved().router;
          for (int64_t t = 0; t < layer_case.num_tokens; ++t) {
            const double* logits = found.logits.data<double>() + t * kExperts;
            const Choice expected = by_definition(config, {logits, logits + kExperts});
            for (int k = 0; k < kTopK; ++k) {
              ASSERT_EQ(found.ids.data<int32_t>()[t * kTopK + k], expected.ids[static_cast<size_t>(k)])
                  << t << ' ' << k;
              // The same few operations in another order.
              ASSERT_NEAR(found.weights.data<double>()[t * kTopK + k], expected.weights[static_cast<size_t>(k)], 1e-14);
            }
          }
        });
      }
    }
  }
}

// The worked example of a task bias: it chooses experts 2 and 5 (of 1 to 8), whose weights come from the scores alone.
TEST(Gates, a_task_bias_chooses_and_does_not_weigh) {
  std::vector<double> scores = {.20, .15, .18, .12, .13, .10, .08, .04};
  std::vector<double> choice(8);
  std::vector<int32_t> task = {1};
  const SelectionBias bias("gate", 8, {.task = 0.2, .expert_task = {0, 1, 2, 3, 1, 0, 3, 4}, .num_tasks = 5});
  const Tensor score_row(scores.data(), DType::f64, {1, 8});
  const Tensor choice_row(choice.data(), DType::f64, {1, 8});
  bias.apply({.task = Tensor(task.data(), DType::i32, {1})}, score_row, choice_row);
  const std::vector<double> expected = {.20, .35, .18, .12, .33, .10, .08, .04};
  for (size_t e = 0; e < 8; ++e) EXPECT_DOUBLE_EQ(choice[e], expected[e]);

  const auto kernels = make_reference_kernels();
  Arena arena;
  Context ctx = {*kernels, arena, DType::f64};
  std::vector<int32_t> ids(2);
  std::vector<double> weights(2);
  const Tensor id_row(ids.data(), DType::i32, {1, 2});
  choose_best(ctx, choice_row, 2, id_row);
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 4}));
  routing_weights({}, score_row, id_row, Tensor(weights.data(), DType::f64, {1, 2}));
  EXPECT_NEAR(weights[0], .535714, 5e-7);  // the digits that are given
  EXPECT_NEAR(weights[1], .464286, 5e-7);
  // Weighed as they were chosen: .35 and .33 of their sum .68.
  const SelectionBias biased("gate", 8,
                             {.task = 0.2, .expert_task = {0, 1, 2, 3, 1, 0, 3, 4}, .num_tasks = 5, .weighs = true});
  biased.weigh({.task = Tensor(task.data(), DType::i32, {1})}, score_row, choice_row);
  routing_weights({}, choice_row, id_row, Tensor(weights.data(), DType::f64, {1, 2}));
  EXPECT_NEAR(weights[0], .514706, 5e-7);
  EXPECT_NEAR(weights[1], .485294, 5e-7);
}

// The worked example: 9.2 and 95 % are worth 1.05 where 8.8 and 92 % are worth 1.
TEST(Gates, a_history_factor_weighs_quality_and_success_within_its_bounds) {
  const ExpertRecord mean = {.quality = 8.8, .success = 0.92};
  EXPECT_NEAR(history_factor({9.2, 0.95}, mean), 1.05, 1e-15);
  EXPECT_DOUBLE_EQ(history_factor({8.8, 0.92}, mean), 1.0);
  EXPECT_NEAR(history_factor({9.2, 0.92}, mean), 1.025, 1e-15);  // either counts for half
  EXPECT_NEAR(history_factor({8.8, 0.95}, mean), 1.025, 1e-15);
  EXPECT_NEAR(history_factor({8.6, 0.935}, mean), 1.0, 1e-15);
  EXPECT_NEAR(history_factor({8.4, 0.89}, mean), 0.95, 1e-15);
  EXPECT_EQ(history_factor({10.0, 1.0}, mean), 1.05);
  EXPECT_EQ(history_factor({0.0, 0.0}, mean), 0.95);
}

// A single expert a token: its weight is its score, as in the published models, and the router has a gradient.
TEST(Gates, a_single_expert_is_not_divided_by_itself) {
  ModelConfig config = gate_config("noaux_tc", "sigmoid", true);
  config.num_experts_per_tok = 1;
  LayerCase layer_case = {
      .options = {.hidden = 10, .expert_width = 3, .init_std = 0.5, .router = router_options(config)}};
  test::alone(layer_case, [&](LayerRun& run) {
    run.run();
    const Router::Saved& found = run.saved().router;
    for (int64_t t = 0; t < layer_case.num_tokens; ++t) {
      const double logit = found.logits.data<double>()[t * kExperts + found.ids.data<int32_t>()[t]];
      ASSERT_NEAR(found.weights.data<double>()[t], 2.5 / (1.0 + std::exp(-logit)), 1e-14);
    }
    const Tensor& grad = run.parameter("mlp.gate.weight").grad;
    EXPECT_GT(*std::max_element(grad.data<double>(), grad.data<double>() + grad.numel()), 1e-3);
  });
  config.router.select.rule = SelectRule::hierarchical;
  config.topk_group = 1;
  EXPECT_EQ(router_options(config).weights.groups, 0);
}

TEST(Gates, the_worked_example_of_softmax_top_2) {
  std::vector<double> scores = {.45, .35, .15, .05};
  std::vector<int32_t> ids = {0, 1};
  std::vector<double> weights(2);
  routing_weights({}, Tensor(scores.data(), DType::f64, {1, 4}), Tensor(ids.data(), DType::i32, {1, 2}),
                  Tensor(weights.data(), DType::f64, {1, 2}));
  EXPECT_DOUBLE_EQ(weights[0], .5625);
  EXPECT_DOUBLE_EQ(weights[1], .4375);
}

// softmax over all, then the best K renormalised = softmax over the best K logits.
TEST(Gates, softmax_before_or_after_the_choice_is_the_same_once_renormalised) {
  LayerCase layer_case = {.options = {.hidden = 10, .expert_width = 3}};
  layer_case.options.router = {.hidden = 10, .num_experts = kExperts, .top_k = kTopK, .init_std = 0.5};
  test::alone(layer_case, [&](LayerRun& run) {
    run.loss();
    const Router::Saved& found = run.saved().router;
    for (int64_t t = 0; t < layer_case.num_tokens; ++t) {
      const auto logit = [&](int k) {
        return found.logits.data<double>()[t * kExperts + found.ids.data<int32_t>()[t * kTopK + k]];
      };
      double sum = 0.0;
      for (int k = 0; k < kTopK; ++k) sum += std::exp(logit(k));
      for (int k = 0; k < kTopK; ++k) {
        EXPECT_NEAR(found.weights.data<double>()[t * kTopK + k], std::exp(logit(k)) / sum, 1e-14);
      }
    }
  });
}

// --- balance without auxiliary loss ----------------------------------------------------------------------------------

constexpr int64_t kManyTokens = 2048;

double max_vio(const std::vector<int64_t>& counts) {
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  return static_cast<double>(std::ranges::max(counts)) * static_cast<double>(counts.size()) / total - 1.0;
}

// MaxVio of every step of a router that sees new tokens each time. All of them lean towards the same direction, and so to
// the same experts. Sampling alone leaves a MaxVio near 2 sqrt(E / (K T)) = 0.09.
std::vector<double> max_vio_of_steps(double rate, int num_steps) {
  std::vector<double> found;
  test::on_one_rank([&](const Communicator& world) {
    Lane lane(0, world.duplicate("expert"), world.duplicate("data"));
    const auto exchange = make_exchange("flat", test::setup_of(world, discover_topology(world), {64, 2, 64}));
    const auto kernels = make_reference_kernels();
    Arena arena;
    LaneContext ctx = {{*kernels, arena, DType::f64}, lane, *exchange};
    Router router("gate", {.hidden = 8,
                           .num_experts = 8,
                           .top_k = 2,
                           .score = ScoreFunction::sigmoid,
                           .selection_bias = true,
                           .init_std = 0.5});
    ParameterStore store;
    store.add_all(router);
    store.allocate(DType::f64, false, false);
    store.initialise(3);
    for (int step = 0; step < num_steps; ++step) {
      arena.release({});
      const Tensor x = arena.take("x", DType::f64, {kManyTokens, 8});
      const Random random(1, "tokens", static_cast<uint64_t>(step));
      for (int64_t i = 0; i < x.numel(); ++i) {
        x.data<double>()[i] = 1.0 + 0.5 * random.normal(static_cast<uint64_t>(i));
      }
      Router::Saved saved;
      Task<void> task = router.forward(ctx, x, saved);
      Engine().run(lane, task);
      found.push_back(max_vio(saved.counts));
      router.update({}, saved.counts, rate);
    }
  });
  return found;
}

TEST(Gates, the_bias_alone_makes_a_skewed_start_even) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "one rank is enough";
  EXPECT_GT(max_vio_of_steps(0.0, 2).back(), 1.0);  // what it starts from
  const std::vector<double> moved = max_vio_of_steps(0.005, 200);
  EXPECT_GT(moved.front(), 1.0);
  for (size_t step = 190; step < 200; ++step) EXPECT_LT(moved[step], 0.2) << step;
}

}  // namespace
}  // namespace cadre::gates_test
