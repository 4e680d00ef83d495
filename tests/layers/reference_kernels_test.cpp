// SPDX-License-Identifier: Apache-2.0
// The reference kernels against values worked out by hand, for both element types.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "layers/kernels/kernels.hpp"
#include "layers/nn/attention.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::reference_kernels_test {
namespace {

using test::values_of;
using Values = std::vector<double>;

class ReferenceKernels : public testing::TestWithParam<DType> {
 protected:
  Tensor of(std::initializer_list<int64_t> shape, const Values& values) {
    return test::tensor_of(arena, GetParam(), shape, values);
  }
  Tensor ints(const Values& values) {
    return test::tensor_of(arena, DType::i32, {static_cast<int64_t>(values.size())}, values);
  }
  Tensor out(std::initializer_list<int64_t> shape) { return arena.take("test", GetParam(), shape); }  // NaN

  // One rounding of values of order one, with room for three.
  void expect(const Tensor& actual, const Values& expected) {
    test::expect_near(values_of(actual), expected, GetParam() == DType::f32 ? 5e-7 : 1e-15);
  }

  Parameter weight(std::initializer_list<int64_t> shape, const Values& values) {
    Parameter parameter;
    parameter.value = of(shape, values);
    return parameter;
  }

  std::unique_ptr<Kernels> kernels = make_reference_kernels();
  Arena arena{Arena::Mode::real, true};
};

TEST_P(ReferenceKernels, Products) {
  const Parameter w = weight({2, 3}, {1, 2, 3, 4, 5, 6});
  const Tensor x = of({2, 3}, {1, 0, -1, 2, 1, 0});
  const Tensor y = out({2, 2});
  kernels->linear(x, w, y);
  expect(y, {-2, -2, 4, 13});

  const Tensor dy = of({2, 2}, {1, 2, 0, -1});
  const Tensor dx = out({2, 3});
  kernels->linear_input_grad(dy, w, dx, Accumulate::no);
  expect(dx, {9, 12, 15, -4, -5, -6});
  kernels->linear_input_grad(dy, w, dx, Accumulate::yes);
  expect(dx, {18, 24, 30, -8, -10, -12});

  const Tensor dw = out({2, 3});
  kernels->linear_weight_grad(x, dy, dw, Accumulate::no);
  expect(dw, {1, 0, -1, 0, -1, -2});
  kernels->linear_weight_grad(x, dy, dw, Accumulate::yes);
  expect(dw, {2, 0, -2, 0, -2, -4});
  kernels->linear_weight_grad(x.rows(0, 0), dy.rows(0, 0), dw, Accumulate::yes);
  expect(dw, {2, 0, -2, 0, -2, -4});
  kernels->linear_weight_grad(x.rows(0, 0), dy.rows(0, 0), dw, Accumulate::no);
  expect(dw, {0, 0, 0, 0, 0, 0});
}

TEST_P(ReferenceKernels, Norms) {
  const Tensor y = out({1, 2});
  const Tensor mean = out({1});
  const Tensor rstd = out({1});
  kernels->rms_norm(of({1, 2}, {1, 7}), of({2}, {1, 10}), 0.0, y, rstd);  // mean square 25
  expect(rstd, {0.2});
  expect(y, {0.2, 14});
  kernels->layer_norm(of({1, 2}, {1, 7}), of({2}, {1, 10}), of({2}, {0.5, 0}), 0.0, y, mean, rstd);  // variance 9
  expect(mean, {4});
  expect(y, {-0.5, 10});
  kernels->rms_norm(of({1, 2}, {0, 0}), of({2}, {1, 1}), 0.25, y, rstd);
  expect(rstd, {2});
  expect(y, {0, 0});
}

TEST_P(ReferenceKernels, Activations) {
  const Tensor x = of({1, 3}, {-1, 0, 1});
  const Tensor y = out({1, 3});
  kernels->activation(Activation::relu, x, y);
  expect(y, {0, 0, 1});
  kernels->activation(Activation::silu, x, y);
  expect(y, {-0.26894142136999512, 0, 0.73105857863000488});  // x / (1 + e^-x)
  kernels->activation(Activation::gelu, x, y);
  expect(y, {-0.15865525393145705, 0, 0.84134474606854295});  // x times the normal distribution function
  const Tensor gated = out({2, 2});
  kernels->swiglu(of({2, 4}, {0, 1, 5, 0.5, 1, 0, 0.25, 4}), gated);
  expect(gated, {0, 0.36552928931500244, 0.18276464465750122, 0});
  kernels->add(gated, gated, gated);
  expect(gated, {0, 0.73105857863000488, 0.36552928931500244, 0});
  const Tensor sum = out({1, 3});
  kernels->scaled_sum(2.0, x, -0.5, of({1, 3}, {4, 6, 1}), sum);
  expect(sum, {-4, -3, 1.5});
  kernels->clip(0.5, of({1, 4}, {-2, -0.5, 0.25, 0.75}), gated.reshape({1, 4}));
  expect(gated, {-0.5, -0.5, 0.25, 0.5});
  kernels->clip_grad(0.5, of({1, 4}, {-2, -0.5, 0.25, 0.75}), of({1, 4}, {1, 2, 3, 4}), gated.reshape({1, 4}));
  expect(gated, {0, 2, 3, 0});
  EXPECT_EQ(kernels->sum_squares(of({2, 2}, {1, 2, 3, 4})), 30.0);
}

TEST_P(ReferenceKernels, RopeTurnsEveryPairByItsOwnAngle) {
  const Tensor x = of({1, 1, 4}, {1, 0, 0, 2});  // pairs (1, 0) and (0, 2)
  const Rope rope = plain_rope(100.0, 4, RopeLayout::halves);
  kernels->rope(x, ints({3}), rope, RopeDirection::forward);
  const double slow = 3.0 / 10.0;  // 100^(-1/2)
  expect(x, {std::cos(3.0), -2 * std::sin(slow), std::sin(3.0), 2 * std::cos(slow)});
  kernels->rope(x, ints({3}), rope, RopeDirection::backward);
  expect(x, {1, 0, 0, 2});
}

TEST_P(ReferenceKernels, InterleavedRopeTurnsNeighboursBehindTheFirstColumns) {
  const Tensor x = of({1, 1, 6}, {7, 1, 0, 0, 2, 8});  // pairs (1, 0) and (0, 2) between two that stay
  Rope rope = plain_rope(100.0, 4, RopeLayout::interleaved);
  rope.first = 1;
  rope.factor = 3.0;
  kernels->rope(x, ints({3}), rope, RopeDirection::forward);
  const double slow = 3.0 / 10.0;
  expect(x, {7, 3 * std::cos(3.0), 3 * std::sin(3.0), -6 * std::sin(slow), 6 * std::cos(slow), 8});
  kernels->rope(x, ints({3}), rope, RopeDirection::backward);  // the transpose, not the inverse
  expect(x, {7, 9, 0, 0, 18, 8});
}

TEST_P(ReferenceKernels, ColumnsAreRepeatedAndSummed) {
  const Tensor rows = of({2, 1, 3}, {1, 2, 3, 4, 5, 6});
  const Tensor heads = of({2, 2, 4}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  kernels->copy_columns({rows, 1, 2}, {heads, 2, 2});
  expect(heads, {0, 0, 2, 3, 0, 0, 2, 3, 0, 0, 5, 6, 0, 0, 5, 6});
  kernels->sum_columns({heads, 1, 2}, {rows, 0, 2});
  expect(rows, {0, 4, 3, 0, 10, 6});
}

TEST_P(ReferenceKernels, HeadsHaveRowsOfTheirOwnInAWeight) {
  const Tensor w = of({4, 2}, {1, 2, 3, 4, 5, 6, 7, 8});  // two rows a head, of which the second is used
  const HeadRows second{w, 2, 1, 1};
  const Tensor x = of({1, 2, 2}, {1, 10, 1, 100});
  const Tensor y = out({1, 2, 1});
  kernels->head_linear(x, second, y);
  expect(y, {43, 807});
  const Tensor back = of({1, 2, 3}, {0, 0, 9, 0, 0, 9});
  kernels->head_linear_transposed(y, second, back);
  expect(back, {3 * 43, 4 * 43, 9, 7 * 807, 8 * 807, 9});
}

TEST_P(ReferenceKernels, AttentionToEqualKeysIsTheMeanOfWhatIsSeen) {
  // Two sequences, two heads on one key/value head, 3 keys of which the 2 queries are the last two, a stride of 4.
  const AttentionShape shape{.batch = 2,
                             .q_len = 2,
                             .kv_len = 3,
                             .kv_stride = 4,
                             .num_heads = 2,
                             .num_kv_heads = 1,
                             .head_dim = 1,
                             .value_dim = 1,
                             .scale = 0.5};
  const double nan = std::nan("");
  const Tensor q = of({4, 2, 1}, {2, -2, 2, -2, 4, -4, 4, -4});
  const Tensor k = of({8, 1, 1}, {1, 1, 1, nan, 1, 1, 1, nan});
  const Tensor v = of({8, 1, 1}, {1, 3, 5, nan, -2, -4, 0, nan});
  const Tensor y = out({4, 2, 1});
  const Tensor lse = out({2, 2, 2});
  kernels->attention(shape, q, k, v, y, lse);
  expect(y, {2, 2, 3, 3, -3, -3, -2, -2});
  const double two = std::log(2.0);
  const double three = std::log(3.0);
  expect(lse, {1 + two, 1 + three, -1 + two, -1 + three, 2 + two, 2 + three, -2 + two, -2 + three});

  const Tensor dq = out({4, 2, 1});
  const Tensor dk = of({8, 1, 1}, {9, 9, 9, 9, 9, 9, 9, 9});
  const Tensor dv = of({8, 1, 1}, {9, 9, 9, 9, 9, 9, 9, 9});
  kernels->attention_grad(shape, q, k, v, y, lse, of({4, 2, 1}, {1, 1, 1, 1, 0, 0, 0, 0}), dq, dk, dv);
  expect(dq, {0, 0, 0, 0, 0, 0, 0, 0});  // equal keys: the outputs do not move with the query
  expect(dv, {5.0 / 3, 5.0 / 3, 2.0 / 3, 9, 0, 0, 0, 9});
  EXPECT_EQ(values_of(dk)[3], 9.0);
}

TEST_P(ReferenceKernels, ConsecutiveHeadsShareAKeyValueHead) {
  const AttentionShape shape{.batch = 1,
                             .q_len = 1,
                             .kv_len = 1,
                             .kv_stride = 1,
                             .num_heads = 4,
                             .num_kv_heads = 2,
                             .head_dim = 1,
                             .value_dim = 1,
                             .scale = 1.0};
  const Tensor q = of({1, 4, 1}, {1, 1, 1, 1});
  const Tensor k = of({1, 2, 1}, {3, 5});
  const Tensor y = out({1, 4, 1});
  const Tensor lse = out({1, 4, 1});
  kernels->attention(shape, q, k, of({1, 2, 1}, {7, 8}), y, lse);
  expect(y, {7, 7, 8, 8});
  expect(lse, {3, 3, 5, 5});
}

TEST_P(ReferenceKernels, Embedding) {
  const Tensor ids = ints({2, 0, 2});
  const Tensor y = out({3, 2});
  kernels->embedding(ids, of({3, 2}, {1, 2, 3, 4, 5, 6}), y);
  expect(y, {5, 6, 1, 2, 5, 6});
  const Tensor dtable = of({3, 2}, {10, 0, 0, 0, 0, 0});
  kernels->embedding_grad(ids, y, dtable);
  expect(dtable, {11, 2, 0, 0, 10, 12});
}

TEST_P(ReferenceKernels, CrossEntropy) {
  const Tensor logits = of({3, 4}, {7, 7, 7, 7, 0, 0, 0, 0, 1000, 0, 0, 0});
  const Tensor targets = ints({2, -1, 0});
  const Tensor losses = out({3});
  kernels->cross_entropy(logits, targets, losses);
  expect(losses, {std::log(4.0), 0, 0});
  kernels->cross_entropy_grad(logits, targets, 2.0, logits);
  expect(logits, {0.5, 0.5, -1.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0});
}

TEST_P(ReferenceKernels, SoftmaxAndSigmoid) {
  const Tensor y = out({1, 3});
  kernels->softmax(of({1, 3}, {1000, 1000 + std::log(2.0), 1000}), y);
  // A float near 1000 has steps of 6e-5, which is the relative error of the middle term.
  test::expect_near(values_of(y), {0.25, 0.5, 0.25}, 2e-5);
  kernels->sigmoid(of({1, 3}, {0, std::log(3.0), -std::log(3.0)}), y);
  expect(y, {0.5, 0.75, 0.25});
}

TEST_P(ReferenceKernels, TopKPrefersTheLowerIndexAndSeesTheBias) {
  const Tensor scores = of({2, 4}, {1, 3, 3, 2, 0, 0, 0, 0});
  const Tensor ids = arena.take("test", DType::i32, {2, 3});
  kernels->top_k(scores, Tensor(), ids);
  expect(ids, {1, 2, 3, 0, 1, 2});
  kernels->top_k(scores, of({4}, {2.5, 0, 0, 0}), ids);
  expect(ids, {0, 1, 2, 0, 1, 2});
}

TEST_P(ReferenceKernels, TopKThrowsOnNaN) {
  const Tensor ids = arena.take("test", DType::i32, {1, 1});
  try {
    kernels->top_k(of({1, 2}, {0, std::nan("")}), Tensor(), ids);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::numerics);
  }
}

TEST_P(ReferenceKernels, Rows) {
  const Tensor src = of({3, 2}, {1, 2, 3, 4, 5, 6});
  const Tensor dst = out({2, 2});
  kernels->gather_rows(src, ints({2, 0}), Tensor(), dst);
  expect(dst, {5, 6, 1, 2});
  kernels->gather_rows(src, ints({2, 0}), of({2}, {2, -1}), dst);
  expect(dst, {10, 12, -1, -2});

  const Tensor sums = out({3, 2});
  kernels->sum_rows(src, ints({0, 2, 2, 3}), ints({0, 2, 1}), Tensor(), sums);
  expect(sums, {6, 8, 0, 0, 3, 4});
  kernels->sum_rows(src, ints({0, 2, 2, 3}), ints({0, 2, 1}), of({3}, {1, 0.5, -1}), sums);
  expect(sums, {3.5, 5, 0, 0, -3, -4});

  const Tensor dots = out({2});
  kernels->dot_rows(src, ints({0, 2}), sums, ints({2, 0}), dots);
  expect(dots, {-11, 47.5});
}

TEST_P(ReferenceKernels, TheFirstAdamWStepMovesByTheLearningRate) {
  const AdamWStep step{.learning_rate = 0.125,
                       .beta1 = 0.5,
                       .beta2 = 0.75,
                       .epsilon = 0.0,
                       .weight_decay = 0.5,
                       .grad_scale = 0.5,
                       .step = 1};
  const Tensor value = of({2}, {1, -2});
  const Tensor m = of({2}, {0, 0});
  const Tensor v = of({2}, {0, 0});
  kernels->adamw(step, value, of({2}, {4, -8}), m, v);
  expect(m, {1, -2});
  expect(v, {1, 4});
  expect(value, {1 - 0.125 * (1 + 0.5), -2 - 0.125 * (-1 - 1)});
}

TEST_P(ReferenceKernels, NoTokensIsNoWork) {
  const Tensor rows = out({0, 4});
  const Tensor heads = out({0, 2, 2});
  const Tensor vector = out({0});
  const Tensor none = ints({});
  const Tensor gain = of({4}, {1, 1, 1, 1});
  const Parameter w = weight({4, 4}, Values(16, 1.0));
  const AttentionShape shape{.batch = 0,
                             .q_len = 3,
                             .kv_len = 3,
                             .kv_stride = 3,
                             .num_heads = 2,
                             .num_kv_heads = 2,
                             .head_dim = 2,
                             .value_dim = 2,
                             .scale = 1.0};
  kernels->linear(rows, w, rows);
  kernels->linear_input_grad(rows, w, rows, Accumulate::no);
  kernels->rms_norm(rows, gain, 1e-6, rows, vector);
  kernels->rms_norm_input_grad(rows, rows, gain, vector, rows);
  kernels->rms_norm_weight_grad(rows, rows, vector, gain);
  kernels->layer_norm(rows, gain, gain, 1e-6, rows, vector, vector);
  kernels->layer_norm_input_grad(rows, rows, gain, vector, vector, rows);
  kernels->layer_norm_weight_grad(rows, rows, vector, vector, gain, gain);
  kernels->activation(Activation::gelu, rows, rows);
  kernels->activation_grad(Activation::gelu, rows, rows, rows);
  kernels->swiglu(out({0, 8}), rows);
  kernels->swiglu_grad(out({0, 8}), rows, out({0, 8}));
  kernels->add(rows, rows, rows);
  kernels->scaled_sum(2.0, rows, 3.0, rows, rows);
  EXPECT_EQ(kernels->sum_squares(rows), 0.0);
  kernels->rope(heads, none, plain_rope(10.0, 2, RopeLayout::halves), RopeDirection::forward);
  kernels->copy_columns({heads, 0, 2}, {heads, 0, 2});
  kernels->sum_columns({heads, 0, 2}, {heads, 0, 2});
  kernels->head_linear(heads, {w.value.reshape({8, 2}), 2, 0, 2}, heads);
  kernels->head_linear_transposed(heads, {w.value.reshape({8, 2}), 2, 0, 2}, heads);
  kernels->attention(shape, heads, heads, heads, heads, out({0, 2, 3}));
  kernels->attention_grad(shape, heads, heads, heads, heads, out({0, 2, 3}), heads, heads, heads, heads);
  kernels->embedding(none, w.value, rows);
  kernels->embedding_grad(none, rows, w.value);
  kernels->cross_entropy(rows, none, vector);
  kernels->cross_entropy_grad(rows, none, 1.0, rows);
  kernels->softmax(rows, rows);
  kernels->softmax_grad(rows, rows, rows);
  kernels->sigmoid(rows, rows);
  kernels->sigmoid_grad(rows, rows, rows);
  kernels->clip(1.0, rows, rows);
  kernels->clip_grad(1.0, rows, rows, rows);
  kernels->top_k(rows, gain, arena.take("test", DType::i32, {0, 2}));
  kernels->gather_rows(rows, none, vector, rows);
  kernels->sum_rows(rows, ints({0}), none, vector, rows);
  kernels->dot_rows(rows, none, rows, none, vector);
  expect(gain, {1, 1, 1, 1});
  expect(w.value, Values(16, 1.0));
}

INSTANTIATE_TEST_SUITE_P(Types, ReferenceKernels, testing::Values(DType::f32, DType::f64),
                         [](const auto& parameter) { return std::string(name_of(parameter.param)); });

}  // namespace
}  // namespace cadre::reference_kernels_test
