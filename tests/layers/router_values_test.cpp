// SPDX-License-Identifier: Apache-2.0
// Which experts eight tokens choose and with which weights.
#include <gtest/gtest.h>

#include "tests/support/eight_tokens.hpp"

namespace cadre::router_values_test {
namespace {

using test::biased_sigmoid;
using test::case_of;
using test::Change;
using test::expect_weights;
using test::Found;
using test::Ids;
using test::kBestTwo;
using test::kBestTwoBiased;
using test::kLogits;
using test::LayerCase;
using test::LayerRun;
using test::routed;

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

// At most 2 slots of each expert, whatever T K / E is: as a factor of 0.7, which is ceil(1.87).
TEST(RouterValues, a_capacity_may_be_a_number_of_tokens) {
  const Found found = routed([](RouterOptions& o) { o.capacity = {.tokens = 2}; });
  EXPECT_EQ(found.ids, (Ids{1, 2, 4, -1, 4, -1, 1, -1, 5, 2, 0, -1, -1, -1, 0, 5}));
  EXPECT_EQ(routed([](RouterOptions& o) { o.capacity = {.tokens = 8}; }).ids, kBestTwo);
}

}  // namespace
}  // namespace cadre::router_values_test
