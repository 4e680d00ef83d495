// SPDX-License-Identifier: Apache-2.0
// The absorbed form of latent attention against its training form, what its cache holds, and YaRN against the published
// numbers of DeepSeek-V3.
#include "layers/nn/latent_attention.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "layers/tensor/parameter.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::latent_attention_test {
namespace {

constexpr int64_t kBatch = 2;
constexpr int64_t kLength = 7;
constexpr int64_t kHidden = 8;

LatentAttentionOptions options(int64_t q_rank) {
  return {.hidden = kHidden,
          .num_heads = 3,
          .q_rank = q_rank,
          .kv_rank = 5,
          .nope_dim = 4,
          .rope_dim = 6,
          .value_dim = 3,
          .rope = yarn_rope(100.0, 6, RopeLayout::interleaved, {.factor = 8, .original_max_position_embeddings = 64}),
          .score_factor = 1.3,
          .init_std = 0.5};
}

class LatentAttentionTest : public testing::TestWithParam<int64_t> {
 protected:
  LatentAttentionTest() {
    store.add_all(attention);
    store.allocate(DType::f64, false, false);
    store.initialise(3);
    uint64_t id = 50;
    for (Parameter* parameter : store.parameters()) {
      if (parameter->value.num_dims() == 1) test::fill_random(parameter->value, id++);  // the norms
    }
  }

  Sequences sequences_of(int64_t length, int64_t first) {
    const Sequences sequences{kBatch, length, arena.take("test", DType::i32, {kBatch * length})};
    fill_positions(sequences, first);
    return sequences;
  }

  NextTokens next(int64_t length, int64_t first) {
    return next_tokens(arena, std::vector<NextTokens::Span>(kBatch, {first, length}));
  }

  // Tokens [first, first + length) of both sequences of x.
  Tensor slice(const Tensor& x, int64_t first, int64_t length) {
    std::vector<double> values;
    for (int64_t b = 0; b < kBatch; ++b) {
      const std::vector<double> rows = test::values_of(x.rows(b * kLength + first, length));
      values.insert(values.end(), rows.begin(), rows.end());
    }
    return test::tensor_of(arena, DType::f64, {kBatch * length, kHidden}, values);
  }

  std::unique_ptr<Kernels> kernels = make_reference_kernels();
  Arena arena{Arena::Mode::real, true};
  Context ctx{*kernels, arena, DType::f64};
  LatentAttention attention{"attention", options(GetParam())};
  ParameterStore store;
};

TEST_P(LatentAttentionTest, AbsorbedDecodingEqualsTheTrainingForm) {
  const Tensor x = test::random_tensor(arena, DType::f64, {kBatch * kLength, kHidden}, 1);
  LatentAttention::Saved saved;
  const Tensor whole = attention.forward(ctx, x, sequences_of(kLength, 0), saved);

  KvCache cache = attention.make_cache(ctx, kBatch, kLength + 2);  // larger than needed: strides differ
  int64_t first = 0;
  for (const int64_t length : {4, 1, 2}) {
    const Tensor y = attention.decode(ctx, slice(x, first, length), next(length, first), cache);
    // Two ways to add up the same products, of order one, in fp64.
    test::expect_near(test::values_of(y), test::values_of(slice(whole, first, length)), 1e-12);
    first += length;
  }
}

TEST_P(LatentAttentionTest, TheCacheHoldsOneLatentAndOneTurnedKeyForAllHeads) {
  const KvCache cache = attention.make_cache(ctx, kBatch, 10);
  EXPECT_EQ(cache.k.numel(), kBatch * 10 * (5 + 6));
  EXPECT_FALSE(cache.v.defined());
}

TEST_P(LatentAttentionTest, OutputsDependOnEarlierTokensOnly) {
  const Tensor x = test::random_tensor(arena, DType::f64, {kBatch * kLength, kHidden}, 1);
  LatentAttention::Saved saved;
  const std::vector<double> before = test::values_of(attention.forward(ctx, x, sequences_of(kLength, 0), saved));
  constexpr int64_t kChanged = 3;  // a token of the first sequence
  test::fill_random(x.rows(kChanged, 1), 2);
  const std::vector<double> after = test::values_of(attention.forward(ctx, x, sequences_of(kLength, 0), saved));
  for (int64_t t = 0; t < kBatch * kLength; ++t) {
    const auto element = static_cast<size_t>(t * kHidden);
    EXPECT_EQ(before[element] != after[element], t >= kChanged && t < kLength) << "token " << t;
  }
}

TEST_P(LatentAttentionTest, RefusesTokensThatDoNotFitTheCache) {
  const Tensor x = test::random_tensor(arena, DType::f64, {kBatch * 3, kHidden}, 1);
  KvCache cache = attention.make_cache(ctx, kBatch, 5);
  attention.decode(ctx, x, next(3, 0), cache);
  const std::string message = test::message_of([&] { attention.decode(ctx, x, next(3, 3), cache); });
  test::expect_message(message, {"3 more tokens", "5 rows", "holds 3"});
}

INSTANTIATE_TEST_SUITE_P(QueryRanks, LatentAttentionTest, testing::Values(0, 6));

// DeepSeek-V3: 32 pairs, stretched from 4,096 to 163,840 positions.
TEST(YarnRope, ChangesTheFrequenciesOfDeepSeekV3AsPublished) {
  const YarnOptions yarn{.factor = 40, .mscale = 1.0, .mscale_all_dim = 1.0};
  const Rope plain = plain_rope(1e4, 64, RopeLayout::interleaved);
  const Rope rope = yarn_rope(1e4, 64, RopeLayout::interleaved, yarn);
  ASSERT_EQ(rope.frequencies.size(), 32U);
  EXPECT_EQ(rope.factor, 1.0);
  // Pairs up to 10 stay, those from 23 on are divided by 40, the others lie on a line between: exact but for rounding.
  for (size_t i = 0; i < 32; ++i) {
    const double stretched = i <= 10 ? 0.0 : (i >= 23 ? 1.0 : (static_cast<double>(i) - 10.0) / 13.0);
    const double expected = plain.frequencies[i] * (stretched / 40.0 + 1.0 - stretched);
    EXPECT_NEAR(rope.frequencies[i], expected, 1e-15 * plain.frequencies[i]) << "pair " << i;
  }
  EXPECT_NEAR(yarn_mscale(40, 1.0), 1.3688879454, 5e-11);  // as many digits as are given
  const double scale = yarn_mscale(40, 1.0) * yarn_mscale(40, 1.0) / std::sqrt(192.0);
  EXPECT_NEAR(scale, 0.1352337789, 5e-11);
  EXPECT_EQ(yarn_mscale(0.5, 1.0), 1.0);
  EXPECT_EQ(yarn_mscale(40, 0.0), 1.0);
}

TEST(YarnRope, MultipliesByTheRatioOfBothScales) {
  const Rope rope = yarn_rope(1e4, 8, RopeLayout::interleaved, {.factor = 40, .mscale = 0.707, .mscale_all_dim = 0.0});
  EXPECT_NEAR(rope.factor, 0.0707 * std::log(40.0) + 1.0, 1e-15);
}

}  // namespace
}  // namespace cadre::latent_attention_test
