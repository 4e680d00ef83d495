// SPDX-License-Identifier: Apache-2.0
// What goes with the router in one kernel, against the pieces of layers/moe: what losses and the host are told, and the way
// back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "layers/router/loss_terms.hpp"
#include "layers/router/weights.hpp"
#include "tests/support/fast_kernels.hpp"

namespace cadre::gpu_router_test {
namespace {

constexpr int64_t kTokens = 12;
constexpr int64_t kExperts = 40;
constexpr int64_t kTopK = 3;

class GpuRouter : public test::FastKernels {
 protected:
  void SetUp() override {
    FastKernels::SetUp();
    if (!IsSkipped() && !fast->can_route({}, kExperts)) GTEST_SKIP() << fast->name() << " routes piece by piece";
  }

  Tensor ints_out(int64_t rows, int64_t columns) { return arena.take("ids", DType::i32, {rows, columns}); }

  RouteResult room() {
    return {.scores = out({kTokens, kExperts}),
            .ids = ints_out(kTokens, kTopK),
            .weights = out({kTokens, kTopK}),
            .not_finite = arena.take("not finite", DType::i32, {kTokens}),
            .best = ints_out(kTokens, kTopK),
            .inverse = out({kTokens, 1})};
  }
};

RouteRule rule_of(bool softmax) {
  return {.softmax = softmax, .groups = 4, .kept = 2, .summed = 2, .renormalise = !softmax, .scale = 2.5};
}

TEST_P(GpuRouter, TellsWhatLossesAndTheHostNeed) {
  for (const bool softmax : {false, true}) {
    const Tensor logits = random({kTokens, kExperts});
    logits.data<float>()[3 * kExperts + 7] = std::numeric_limits<float>::quiet_NaN();
    logits.data<float>()[5 * kExperts] = -std::numeric_limits<float>::infinity();
    logits.data<float>()[6 * kExperts + 39] = std::numeric_limits<float>::infinity();
    const RouteResult result = room();
    fast->route(rule_of(softmax), logits, random({kExperts}), result);
    fast->synchronize();
    const Tensor best = ints_out(1, kTopK);
    for (int64_t t = 0; t < kTokens; ++t) {
      const bool is_bad = t == 3 || t == 5 || t == 6;
      ASSERT_EQ(result.not_finite.data<int32_t>()[t], is_bad ? 1 : 0) << "token " << t;
      if (is_bad) continue;
      reference->top_k(result.scores.rows(t, 1), Tensor(), best);
      EXPECT_EQ(test::values_of(result.best.rows(t, 1)), test::values_of(best)) << "token " << t;
      double sum = 0.0;
      for (const double score : test::values_of(result.scores.rows(t, 1))) sum += score;
      EXPECT_NEAR(result.inverse.data<float>()[t], 1.0 / sum, test::kSumError / sum) << "token " << t;
    }
  }
}

// Each element is a sum of products of magnitude at most `terms`, of which each is rounded a few times and one is a sum over
// all experts.
TEST_P(GpuRouter, GoesBackAsThePiecesDo) {
  for (const bool softmax : {false, true}) {
    for (const int64_t num_rows : {int64_t{0}, int64_t{1}, int64_t{4}}) {
      SCOPED_TRACE(testing::Message() << (softmax ? "softmax" : "sigmoid") << ", slopes for " << num_rows);
      const RouteRule rule = rule_of(softmax);
      const RouteResult result = room();
      fast->route(rule, random({kTokens, kExperts}), Tensor(), result);
      fast->synchronize();
      result.ids.data<int32_t>()[4] = -1;
      const Tensor dweights = random({kTokens, kTopK});
      RouteSlopes slopes;
      if (num_rows > 0) slopes = {random({num_rows, kExperts}), random({kExperts})};
      const Tensor dlogits = out({kTokens, kExperts});
      fast->route_grad(rule, result.scores, result.ids, dweights, slopes, dlogits);

      const Tensor dscores = out({kTokens, kExperts});
      routing_weights_grad({.renormalise = rule.renormalise, .scale = rule.scale}, result.scores, result.ids, dweights,
                           dscores);
      if (num_rows > 0) {
        add_prob_grad(test::values_of(slopes.by_share), kTokens / num_rows, result.scores, dscores);
        add_row(test::values_of(slopes.by_score), dscores);
      }
      const Tensor expected = out({kTokens, kExperts});
      softmax ? reference->softmax_grad(result.scores, dscores, expected)
              : reference->sigmoid_grad(result.scores, dscores, expected);
      double terms = 0.0;
      for (const double value : test::values_of(dscores)) terms = std::max(terms, std::fabs(value));
      for (const double value : test::values_of(slopes.by_share.defined() ? slopes.by_share : dscores)) {
        terms = std::max(terms, 2.0 * std::fabs(value));
      }
      expect_absolute(dlogits, expected, 4.0 * test::kSumError * terms);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, GpuRouter, test::each_fast_back_end(), test::name_of_back_end);

}  // namespace
}  // namespace cadre::gpu_router_test
