// SPDX-License-Identifier: Apache-2.0
// Every router and every loss: outputs, losses and gradients on any number of ranks equal those of one rank, which equal
// central differences, all in fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/support/gradient_check.hpp"
#include "tests/support/layer_run.hpp"

namespace cadre {
namespace {

using test::LayerCase;
using test::LayerResult;
using test::LayerRun;
using test::Values;

constexpr int64_t kHidden = 10;
constexpr int64_t kTokens = 24;

struct RouterCase {
  const char* name;
  RouterOptions router;
  bool is_smooth = true;  // false: a straight-through gradient, which central differences do not see
  bool has_tasks = false;
  bool first_rank_empty = false;
  bool ragged_k = false;
  ExpertKinds kinds = ExpertKinds::same;
};

RouterOptions router(int top_k = 2) {
  return {.hidden = kHidden, .num_experts = 8, .top_k = top_k, .score = ScoreFunction::softmax, .init_std = 0.5};
}

template <class Change>
RouterOptions with(Change&& change, int top_k = 2) {
  RouterOptions options = router(top_k);
  change(options);
  return options;
}

// A bias that sends most tokens to the first experts, so that capacities are felt.
void skew(Parameter& parameter) {
  if (!parameter.name().ends_with("e_score_correction_bias")) return;
  for (int e = 0; e < 8; ++e) parameter.value.data<double>()[e] = 0.3 / (1.0 + e);
}

std::vector<RouterCase> router_cases() {
  using O = RouterOptions;
  return {
      {"softmax before top-k, renormalised", router()},
      {"gate, up and down experts", router(), true, false, false, false, ExpertKinds::typed},
      {"experts that are mixtures", router(), true, false, false, false, ExpertKinds::mixture},
      {"experts that are mixtures, rank 0 without tokens", router(), true, false, true, false, ExpertKinds::mixture},
      {"two hidden layers", with([](O& o) {
         o.scorer.hidden_sizes = {7, 6};
       })},
      {"jitter", with([](O& o) { o.scorer.jitter = 0.1; }), true, false, true},
      {"noisy top-k with importance and load", with([](O& o) {
         o.scorer.noise = true;
         o.losses = {.importance = 0.7, .load = 0.9};
       })},
      {"noisy, rank 0 without tokens", with([](O& o) {
         o.scorer.noise = true;
         o.losses = {.importance = 0.7, .load = 0.9, .z = 0.01};
       }),
       true, false, true},
      {"binary gate", with([](O& o) { o.weights.gate = GateKind::binary; }), false},
      {"task bias, tasks and history", with([](O& o) {
         o.bias = {.task = 0.2, .expert_task = {0, 1, 2, 3, 1, 0, 3, 4}, .num_tasks = 5, .history = true};
       }),
       true, true},
      {"conditional experts", with([](O& o) {
         o.eligibility.conditions = {{6, ExpertCondition::Kind::task, 2},
                                     {1, ExpertCondition::Kind::position_below, 2},
                                     {3, ExpertCondition::Kind::position_from, 1}};
       }),
       true, true},
      {"node limit that does not divide", with(
                                              [](O& o) {
                                                o.eligibility.nodes = {3, 2, 1};
                                                o.losses = {.communication = 0.5, .devices = 3, .devices_a_token = 2};
                                              },
                                              3)},
      {"dead experts", with([](O& o) {
         o.dead_experts = {0, 5};
         o.losses = {.z = 0.1};
       })},
      {"sigmoid with dead experts and groups", with([](O& o) {
         o.score = ScoreFunction::sigmoid;
         o.dead_experts = {2, 3};
         o.groups = {4, 2, 2};
       })},
      {"top-p", with([](O& o) { o.select.top_p = 0.5; }, 4)},
      {"K of each token", router(4), true, false, false, true},
      {"expert choice", with([](O& o) {
         o.select.rule = SelectRule::expert_choice;
         o.weights.renormalise = false;
       })},
      {"expert choice, rank 0 without tokens", with([](O& o) { o.select.rule = SelectRule::expert_choice; }), true,
       false, true},
      {"hybrid that lets tokens choose",
       with([](O& o) { o.select = {.rule = SelectRule::hybrid, .hybrid_load = 99.0}; })},
      {"hybrid that lets experts choose",
       with([](O& o) { o.select = {.rule = SelectRule::hybrid, .hybrid_load = 0.1}; })},
      {"sinkhorn", with([](O& o) {
         o.select.rule = SelectRule::sinkhorn;
         o.score = ScoreFunction::sigmoid;
       })},
      {"hierarchical, one gate", with(
                                     [](O& o) {
                                       o.select.rule = SelectRule::hierarchical;
                                       o.groups = {4, 2, 1};
                                       o.weights.groups = 4;
                                     },
                                     4)},
      {"hierarchical, two gates", with(
                                      [](O& o) {
                                        o.select.rule = SelectRule::hierarchical;
                                        o.groups = {4, 2, 1};
                                        o.weights.groups = 4;
                                        o.scorer.coarse_groups = 4;
                                        o.losses = {.balance = 0.3};
                                      },
                                      4)},
      {"dense mixture", router(8)},
      {"capacity by probability", with([](O& o) {
         o.selection_bias = true;
         o.capacity = {.factor = 0.8};
       })},
      {"capacity by position, renormalised, rank 0 without tokens", with([](O& o) {
         o.selection_bias = true;
         o.capacity = {.factor = 0.8, .drop = DropPolicy::position, .renormalise = true};
         o.losses = {.importance = 0.2};
       }),
       true, false, true},
      {"dynamic capacity", with([](O& o) {
         o.selection_bias = true;
         o.capacity = {.factor = 1.0, .kind = CapacityKind::dynamic};
       })},
      {"learned capacity", with([](O& o) {
         o.selection_bias = true;
         o.capacity = {.factor = 0.7, .kind = CapacityKind::learned, .rate = 0.2};
       })},
      {"losses of V2", with([](O& o) {
         o.losses = {.expert = 0.3, .device = 0.5, .communication = 0.2, .devices = 3, .devices_a_token = 2};
         o.weights.renormalise = false;
       })},
      {"loss by sequence", with([](O& o) {
         o.score = ScoreFunction::sigmoid;
         o.losses = {.balance = 0.4, .by_sequence = true};
       }),
       true, false, true},
      {"KL, variances and z", with([](O& o) {
         o.score = ScoreFunction::sigmoid;
         o.losses = {.kl = 0.3, .expert_variance = 0.2, .device_variance = 0.4, .z = 0.01, .devices = 3};
       })},
      {"all losses at once", with([](O& o) {
         o.scorer.noise = true;
         o.losses = {.balance = 0.1,
                     .kl = 0.2,
                     .importance = 0.3,
                     .load = 0.4,
                     .expert = 0.5,
                     .device = 0.6,
                     .communication = 0.7,
                     .expert_variance = 0.8,
                     .device_variance = 0.9,
                     .z = 0.01,
                     .devices = 4,
                     .devices_a_token = 2};
       }),
       true, false, true},
  };
}

LayerCase layer_case_of(const RouterCase& router_case) {
  LayerCase layer_case = {.options = {.hidden = kHidden, .expert_width = 6, .shared_width = 4, .init_std = 0.5},
                          .num_tokens = kTokens,
                          .sequence_length = 2,  // on any number of ranks whole sequences
                          .first_rank_empty = router_case.first_rank_empty,
                          .prepare = skew};
  layer_case.options.router = router_case.router;
  layer_case.options.expert_kinds = router_case.kinds;
  layer_case.options.inner_experts = 3;
  layer_case.options.inner_top_k = 2;
  for (int32_t t = 0; t < kTokens; ++t) {
    if (router_case.has_tasks) layer_case.tasks.push_back(t % 6 - 1);
    if (router_case.ragged_k) layer_case.experts_a_token.push_back(1 + t % 4);
  }
  return layer_case;
}

TEST(MoeRouters, equal_the_single_rank_layer_on_any_number_of_ranks) {
  for (const RouterCase& router_case : router_cases()) {
    SCOPED_TRACE(router_case.name);
    const LayerCase layer_case = layer_case_of(router_case);
    const LayerResult reference = single_rank(layer_case);
    test::on_ranks([&](Communicator& world) {
      LayerRun run(layer_case, world, {"flat", "hosts as they are", discover_topology(world)});
      double loss = run.loss();
      Request summed = world.all_reduce(std::span(&loss, 1), ReduceOp::sum);
      wait(summed);
      EXPECT_NEAR(loss, reference.loss, test::kSameUpToRounding);
      run.run();
      expect_same(reference, run, world, kHidden);
      const std::vector<int32_t> ids = run.ids();
      const auto width = static_cast<int64_t>(reference.ids.size()) / kTokens;
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), reference.ids.begin() + run.slice().first * width));
    });
  }
}

TEST(MoeRouters, gradients_equal_central_differences) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "one rank is enough";
  for (const RouterCase& router_case : router_cases()) {
    SCOPED_TRACE(router_case.name);
    if (!router_case.is_smooth) continue;
    test::alone(layer_case_of(router_case), [&](LayerRun& run) {
      run.run();
      const auto loss = [&run] { return run.loss(); };
      Values dx = test::values_of(run.dx());
      test::expect_gradient("x", loss, run.x(), Tensor(dx.data(), DType::f64, {kTokens, kHidden}));
      for (const Parameter* parameter : run.parameters()) {
        const bool is_routing = parameter->name().find(".gate.weight") != std::string::npos ||
                                parameter->name().find("mlp.gate.") != std::string::npos;
        if (!parameter->grad.defined() || !(is_routing || router_case.kinds == ExpertKinds::mixture)) continue;
        Values grad = test::values_of(parameter->grad);  // loss() runs forward only, but its memory is shared
        test::expect_gradient(parameter->name(), loss, parameter->value, parameter->grad);
      }
    });
  }
}

// The gradient of a binary gate is that of the plain scores.
TEST(MoeRouters, a_binary_gate_passes_the_gradient_straight_through) {
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

TEST(MoeRouters, cases_are_what_they_say) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "one rank is enough";
  std::map<std::string, std::vector<int64_t>> counts;
  std::map<std::string, int64_t> dropped;
  for (const RouterCase& router_case : router_cases()) {
    test::alone(layer_case_of(router_case), [&](LayerRun& run) {
      run.loss();
      counts[router_case.name] = run.counts();
      dropped[router_case.name] = run.saved().router.num_dropped();
      const auto sum = std::accumulate(run.counts().begin(), run.counts().end(), int64_t{0});
      EXPECT_EQ(run.saved().route.plan.num_slots(), sum) << router_case.name;
    });
  }
  EXPECT_EQ(counts["expert choice"], std::vector<int64_t>(8, 6));  // 24 * 2 / 8
  EXPECT_EQ(counts["hybrid that lets experts choose"], std::vector<int64_t>(8, 6));
  EXPECT_NE(counts["hybrid that lets tokens choose"], std::vector<int64_t>(8, 6));
  EXPECT_EQ(counts["dense mixture"], std::vector<int64_t>(8, 24));
  EXPECT_EQ(counts["dead experts"][0] + counts["dead experts"][5], 0);
  const auto total = [&](const char* name) {
    return std::accumulate(counts[name].begin(), counts[name].end(), int64_t{0});
  };
  EXPECT_EQ(total("K of each token"), 6 * (1 + 2 + 3 + 4));
  EXPECT_LT(total("top-p"), 24 * 4);
  for (const char* name : {"capacity by probability", "capacity by position, renormalised, rank 0 without tokens",
                           "dynamic capacity", "learned capacity"}) {
    EXPECT_GT(dropped[name], 0) << name;
    EXPECT_EQ(dropped[name] + total(name), 48) << name;
  }
  // ceil(0.8 * 24 * 2 / 8) = 5
  EXPECT_EQ(std::ranges::max(counts["capacity by probability"]), 5);
}

// Which slots have no room, by the definitions of DropPolicy, one slot after the other.
TEST(MoeRouters, capacities_drop_what_their_policy_says) {
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
TEST(MoeRouters, without_living_experts_the_shared_expert_remains) {
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

TEST(MoeRouters, weights_are_shared_among_the_living) {
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

TEST(MoeRouters, expert_choice_refuses_to_decode) {
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

TEST(MoeRouters, a_logit_that_is_not_finite_is_an_error_with_layer_count_and_token) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    test::alone(layer_case_of({"plain", router()}), [bad](LayerRun& run) {
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

// What capacities and histories learn is the same on any number of ranks, and moves as defined.
TEST(MoeRouters, buffers_learn_the_same_on_any_number_of_ranks) {
  for (const char* name : {"dynamic capacity", "learned capacity", "task bias, tasks and history"}) {
    SCOPED_TRACE(name);
    const auto cases = router_cases();
    const auto found = std::ranges::find_if(cases, [name](const RouterCase& c) { return c.name == std::string(name); });
    const LayerCase layer_case = layer_case_of(*found);
    const auto learn = [&](LayerRun& run, const std::function<void(std::vector<int64_t>&)>& sum) {
      Values learned;
      for (int step = 0; step < 3; ++step) {
        run.run();
        std::vector<int64_t> statistics = run.layer().router().take_statistics();
        sum(statistics);
        run.layer().router().update(statistics, std::vector<int64_t>(8, 1), 0.0);
      }
      for (const Parameter* parameter : run.parameters()) {
        if (parameter->placement != Placement::buffer) continue;
        const Values values = test::values_of(parameter->value);
        learned.insert(learned.end(), values.begin(), values.end());
      }
      return learned;
    };
    Values reference;
    test::alone(layer_case, [&](LayerRun& run) { reference = learn(run, [](std::vector<int64_t>&) {}); });
    EXPECT_GT(std::ranges::max(reference), 0.0);
    test::on_ranks([&](Communicator& world) {
      LayerRun run(layer_case, world, {"flat", "hosts as they are", discover_topology(world)});
      const Values learned = learn(run, [&](std::vector<int64_t>& values) {
        Request summed = world.all_reduce(std::span(values), ReduceOp::sum);
        wait(summed);
      });
      EXPECT_EQ(learned, reference);
    });
  }
}

}  // namespace
}  // namespace cadre
