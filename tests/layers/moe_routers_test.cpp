// SPDX-License-Identifier: Apache-2.0
// Every router and every loss: outputs, losses and gradients on any number of ranks equal those of one rank, which equal
// central differences, all in fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/support/gradient_check.hpp"
#include "tests/support/router_cases.hpp"

namespace cadre::moe_routers_test {
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

void projections(RouterOptions& options) {
  options.num_experts = 9;
  options.select.rule = SelectRule::by_kind;
  options.weights = {.scale = 1.5, .parts = 3};
  options.losses = {.balance = 0.1};
}

std::vector<RouterCase> router_cases() {
  using O = RouterOptions;
  return {
      {"softmax before top-k, renormalised", router()},
      {"gate, up and down experts", router(), true, false, false, false, ExpertKinds::typed},
      {"single projections", with(projections, 6), true, false, false, false, ExpertKinds::projections},
      {"single projections, K of each token, rank 0 without tokens", with(projections, 6), true, false, true, true,
       ExpertKinds::projections},
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
      {"task bias and history that weigh", with([](O& o) {
         o.bias = {
             .task = 0.2, .expert_task = {0, 1, 2, 3, 1, 0, 3, 4}, .num_tasks = 5, .history = true, .weighs = true};
         o.weights.scale = 1.5;
       }),
       true, true},
      {"one expert a token", with([](O& o) { o.weights.renormalise = false; }, 1)},
      {"unlike outputs", with([](O& o) { o.losses = {.diversity = 0.5}; })},
      {"unlike outputs, K of each token, rank 0 without tokens",
       with([](O& o) { o.losses = {.balance = 0.1, .diversity = 0.5}; }, 4), true, false, true, true},
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
      {"raw variances, unbiased variances and cyclic devices", with([](O& o) {
         o.score = ScoreFunction::sigmoid;
         o.losses = {.importance = 0.1,
                     .device = 0.3,
                     .communication = 0.2,
                     .expert_variance = 0.2,
                     .device_variance = 0.4,
                     .devices = 3,
                     .devices_a_token = 2,
                     .layout = DeviceLayout::cyclic,
                     .importance_form = {VarianceForm::Kind::raw, Variance::unbiased},
                     .expert_form = {VarianceForm::Kind::cv2, Variance::unbiased},
                     .device_form = {VarianceForm::Kind::cv2, Variance::population}};
       })},
      {"variances of counts", with([](O& o) {
         o.losses = {.expert_variance = 0.2,
                     .device_variance = 0.4,
                     .devices = 3,
                     .expert_form = {VarianceForm::Kind::counts, Variance::population},
                     .device_form = {VarianceForm::Kind::counts, Variance::unbiased}};
       }),
       false},
      {"capacity of five tokens", with([](O& o) {
         o.selection_bias = true;
         o.capacity = {.tokens = 5};
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

TEST(MoeRouters, equal_the_single_rank_layer_on_any_number_of_ranks) {
  for (const RouterCase& router_case : router_cases()) {
    SCOPED_TRACE(router_case.name);
    const LayerCase layer_case = layer_case_of(router_case);
    const LayerResult reference = single_rank(layer_case);
    test::on_ranks([&](Communicator& world) {
      LayerRun run(layer_case, world, {"flat", "hosts as they are", discover_topology(world)});
      EXPECT_NEAR(wait(world.all_reduce(run.loss(), ReduceOp::sum)), reference.loss, test::kSameUpToRounding);
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
        const bool is_composed =
            router_case.kinds == ExpertKinds::mixture || router_case.kinds == ExpertKinds::projections;
        const bool is_routing = parameter->name().find(".gate.weight") != std::string::npos ||
                                parameter->name().find("mlp.gate.") != std::string::npos;
        if (!parameter->grad.defined() || !(is_routing || is_composed)) continue;
        Values grad = test::values_of(parameter->grad);  // loss() runs forward only, but its memory is shared
        test::expect_gradient(parameter->name(), loss, parameter->value, parameter->grad);
      }
    });
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
      int64_t planned = 0;
      for (const RoutedExperts::Saved* routed : run.saved().routed()) planned += routed->dispatch->plan().num_slots();
      EXPECT_EQ(planned, sum) << router_case.name;
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
  EXPECT_EQ(total("single projections"), 24 * 6);
  // ceil(n / 3) of each kind for n of 1, 2, 3 and 4.
  EXPECT_EQ(total("single projections, K of each token, rank 0 without tokens"), 6 * 3 * (1 + 1 + 1 + 2));
  for (const char* name : {"capacity by probability", "capacity by position, renormalised, rank 0 without tokens",
                           "capacity of five tokens", "dynamic capacity", "learned capacity"}) {
    EXPECT_GT(dropped[name], 0) << name;
    EXPECT_EQ(dropped[name] + total(name), 48) << name;
  }
  // ceil(0.8 * 24 * 2 / 8) = 5
  EXPECT_EQ(std::ranges::max(counts["capacity by probability"]), 5);
  EXPECT_EQ(std::ranges::max(counts["capacity of five tokens"]), 5);
}

// So that all ranks get to the end of the step, where they skip it together.
TEST(MoeRouters, in_training_a_logit_that_is_not_finite_makes_a_nan) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const RouterCase& router_case : router_cases()) {
      SCOPED_TRACE(router_case.name);
      test::alone(layer_case_of(router_case), [bad](LayerRun& run) {
        run.x().data<double>()[5 * kHidden] = bad;
        run.x().data<double>()[9 * kHidden + 1] = bad;
        EXPECT_TRUE(std::isnan(run.loss()));
        EXPECT_EQ(run.saved().router.scorer.not_finite, (std::vector<int64_t>{5, 9}));
        run.run();
      });
    }
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
        values = wait(world.all_reduce(std::move(values), ReduceOp::sum));
      });
      EXPECT_EQ(learned, reference);
    });
  }
}

}  // namespace
}  // namespace cadre::moe_routers_test
