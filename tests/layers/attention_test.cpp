// SPDX-License-Identifier: Apache-2.0
// Decoding with a cache gives what the whole-sequence form gives, and refuses to outgrow its cache.
#include "layers/nn/attention.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "layers/tensor/parameter.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::attention_test {
namespace {

constexpr int64_t kBatch = 2;
constexpr int64_t kLength = 6;
constexpr int64_t kHidden = 8;

class AttentionTest : public testing::Test {
 protected:
  AttentionTest() {
    store.add_all(attention);
    store.allocate(DType::f64, false, false);
    store.initialise(3);
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
  CausalAttention attention{"attention",
                            {.hidden = kHidden,
                             .num_heads = 4,
                             .num_kv_heads = 2,
                             .head_dim = 4,
                             .rope = plain_rope(1e4, 4, RopeLayout::halves),
                             .init_std = 0.5}};
  ParameterStore store;
};

TEST_F(AttentionTest, DecodingEqualsTheWholeSequence) {
  const Tensor x = test::random_tensor(arena, DType::f64, {kBatch * kLength, kHidden}, 1);
  CausalAttention::Saved saved;
  const Tensor whole = attention.forward(ctx, x, sequences_of(kLength, 0), saved);

  KvCache cache = attention.make_cache(ctx, kBatch, kLength + 2);  // larger than needed: strides differ
  int64_t first = 0;
  for (const int64_t length : {3, 1, 2}) {
    const Tensor y = attention.decode(ctx, slice(x, first, length), next(length, first), cache);
    const std::vector<double> expected = test::values_of(slice(whole, first, length));
    // The same sums of fewer than 10 terms of order one, in fp64.
    test::expect_near(test::values_of(y), expected, 1e-13);
    first += length;
  }
}

// With a norm of queries and keys, biases, bounds that some elements pass, and half of a head that turns.
TEST_F(AttentionTest, DecodingEqualsTheWholeSequenceWithNormsBiasesAndBounds) {
  for (const QkNorm norm : {QkNorm::head, QkNorm::full}) {
    CausalAttention normed{"normed",
                           {.hidden = kHidden,
                            .num_heads = 4,
                            .num_kv_heads = 2,
                            .head_dim = 6,
                            .rope = plain_rope(1e4, 4, RopeLayout::halves),
                            .init_std = 0.5,
                            .qk_norm = norm,
                            .clip = 0.7,
                            .qkv_bias = Linear::Bias::added,
                            .o_bias = Linear::Bias::added}};
    ParameterStore weights;
    weights.add_all(normed);
    weights.allocate(DType::f64, false, false);
    uint64_t seed = 10;
    for (const Parameter* parameter : weights.parameters()) test::fill_random(parameter->value, ++seed);
    const Tensor x = test::random_tensor(arena, DType::f64, {kBatch * kLength, kHidden}, 1);
    CausalAttention::Saved saved;
    const Tensor whole = normed.forward(ctx, x, sequences_of(kLength, 0), saved);
    KvCache cache = normed.make_cache(ctx, kBatch, kLength);
    int64_t first = 0;
    for (const int64_t length : {3, 1, 2}) {
      const Tensor y = normed.decode(ctx, slice(x, first, length), next(length, first), cache);
      test::expect_near(test::values_of(y), test::values_of(slice(whole, first, length)), 1e-13);
      first += length;
    }
  }
}

// softmax(q k / sqrt(D)) v with projections that are the identity, D = 4, at position 0, where nothing turns: q1 k0 = 0 and
// q1 k1 = 4, so token 1 has e^2 / (1 + e^2) = 0.880797078 of itself.
TEST_F(AttentionTest, ScoresAreDividedByTheRootOfTheWidthOfAHead) {
  CausalAttention one_head{"one",
                           {.hidden = 4,
                            .num_heads = 1,
                            .num_kv_heads = 1,
                            .head_dim = 4,
                            .rope = plain_rope(1e4, 4, RopeLayout::halves),
                            .init_std = 0.5}};
  ParameterStore weights;
  weights.add_all(one_head);
  weights.allocate(DType::f64, false, false);
  for (const Parameter* parameter : weights.parameters()) {
    for (int64_t i = 0; i < 16; ++i) parameter->value.data<double>()[i] = i % 5 == 0 ? 1.0 : 0.0;
  }
  const Tensor x = test::tensor_of(arena, DType::f64, {2, 4}, {0, 1, 0, 0, 2, 0, 0, 0});
  const Sequences at_zero{1, 2, arena.take("test", DType::i32, {2})};
  at_zero.positions.data<int32_t>()[0] = at_zero.positions.data<int32_t>()[1] = 0;
  CausalAttention::Saved saved;
  const Tensor y = one_head.forward(ctx, x, at_zero, saved);
  test::expect_near(test::values_of(y), {0, 1, 0, 0, 1.761594156, 0.119202922, 0, 0}, 1e-9);
}

TEST_F(AttentionTest, OutputsDependOnEarlierTokensOnly) {
  const Tensor x = test::random_tensor(arena, DType::f64, {kBatch * kLength, kHidden}, 1);
  CausalAttention::Saved saved;
  const std::vector<double> before = test::values_of(attention.forward(ctx, x, sequences_of(kLength, 0), saved));
  constexpr int64_t kChanged = 3;  // a token of the first sequence
  test::fill_random(x.rows(kChanged, 1), 2);
  const std::vector<double> after = test::values_of(attention.forward(ctx, x, sequences_of(kLength, 0), saved));
  for (int64_t t = 0; t < kBatch * kLength; ++t) {
    const auto element = static_cast<size_t>(t * kHidden);
    const bool may_change = t >= kChanged && t < kLength;
    EXPECT_EQ(before[element] != after[element], may_change) << "token " << t;
  }
}

TEST_F(AttentionTest, RefusesTokensThatDoNotFitTheCache) {
  const Tensor x = test::random_tensor(arena, DType::f64, {kBatch * 3, kHidden}, 1);
  KvCache cache = attention.make_cache(ctx, kBatch, 5);
  attention.decode(ctx, x, next(3, 0), cache);
  const std::string message = test::message_of([&] { attention.decode(ctx, x, next(3, 3), cache); });
  test::expect_message(message, {"3 more tokens", "5 rows", "holds 3"});
}

TEST_F(AttentionTest, RefusesHeadsThatDoNotDivide) {
  const std::string message = test::message_of([] {
    CausalAttention("attention", {.hidden = 8,
                                  .num_heads = 4,
                                  .num_kv_heads = 3,
                                  .head_dim = 4,
                                  .rope = plain_rope(1e4, 4, RopeLayout::halves)});
  });
  test::expect_message(message, {"num_attention_heads = 4", "num_key_value_heads = 3"});
}

}  // namespace
}  // namespace cadre::attention_test
