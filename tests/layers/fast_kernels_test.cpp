// SPDX-License-Identifier: Apache-2.0
// The kernels of the fast back ends against the reference: odd sizes, outputs poisoned with NaN, aliasing where it
// is allowed. u = 2^-24 is half a unit in the last place; the reference sums in fp64 and rounds once.
#include "tests/support/fast_kernels.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace cadre::fast_kernels_test {
namespace {

using FastKernels = test::FastKernels;
using test::kSumError;
using test::kWidths;
using test::u;

// exp 2u, one addition, one division, one product: 5u for the logistic function, 6u with the product by x. Phi is
// within 10u (exponential 3u, polynomial and its division 6u, products); the reference's own erf loses 1e-16 near -1.
// Below -88.7 exp(-x) is infinite in fp32, where silu is not yet below 3e-37.
TEST_P(FastKernels, ActivationsStayCloseToRounding) {
  const Tensor x = sweep();
  const Tensor actual = out({x.numel()});
  const Tensor expected = out({x.numel()});
  const auto compare = [&](Activation kind, double relative, double absolute) {
    fast->activation(kind, x, actual);
    reference->activation(kind, x, expected);
    expect_relative(actual, expected, relative, absolute);
    const Tensor in_place = copy(x);
    fast->activation(kind, in_place, in_place);
    expect_same_bits(in_place, actual);
  };
  compare(Activation::relu, 0.0, 0.0);
  compare(Activation::silu, 6 * u, 3e-37);
  compare(Activation::gelu, 12 * u, 1e-14);
  fast->sigmoid(x, actual);
  reference->sigmoid(x, expected);
  expect_relative(actual, expected, 5 * u);
}

// A slope is a sum of two terms below 1.13 that may cancel: 12u of the larger.
TEST_P(FastKernels, ActivationGradients) {
  const Tensor x = sweep();
  const Tensor dy = random({x.numel()});
  const Tensor actual = out({x.numel()});
  const Tensor expected = out({x.numel()});
  for (const Activation kind : {Activation::relu, Activation::silu, Activation::gelu}) {
    fast->activation_grad(kind, x, dy, actual);
    reference->activation_grad(kind, x, dy, expected);
    expect_within(actual, expected, [&](size_t i, double) { return 14 * u * std::abs(dy.data<float>()[i]) + 1e-37; });
    const Tensor in_place = copy(dy);
    fast->activation_grad(kind, x, in_place, in_place);
    expect_same_bits(in_place, actual);
  }
}

TEST_P(FastKernels, NaNAndInfinityPassThrough) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor x = test::tensor_of(arena, DType::f32, {3}, {nan, inf, -inf});
  const Tensor y = out({3});
  for (const Activation kind : {Activation::relu, Activation::silu, Activation::gelu}) {
    fast->activation(kind, x, y);
    fast->synchronize();
    EXPECT_TRUE(std::isnan(y.data<float>()[0]));
    EXPECT_EQ(y.data<float>()[1], inf);
  }
  fast->sigmoid(x, y);
  fast->synchronize();
  EXPECT_TRUE(std::isnan(y.data<float>()[0]));
  EXPECT_EQ(y.data<float>()[1], 1.0F);
  EXPECT_EQ(y.data<float>()[2], 0.0F);
  fast->softmax(x, y);
  fast->synchronize();
  EXPECT_TRUE(std::isnan(y.data<float>()[2]));
}

TEST_P(FastKernels, SwiGlu) {
  for (const int64_t width : kWidths) {
    const Tensor gate_up = random({5, 2 * width}, 3.0);
    const Tensor dy = random({5, width});
    const Tensor actual = out({5, width});
    const Tensor expected = out({5, width});
    fast->swiglu(gate_up, actual);
    reference->swiglu(gate_up, expected);
    expect_relative(actual, expected, 8 * u);

    const Tensor actual_grad = out({5, 2 * width});
    const Tensor expected_grad = out({5, 2 * width});
    fast->swiglu_grad(gate_up, dy, actual_grad);
    reference->swiglu_grad(gate_up, dy, expected_grad);
    expect_within(actual_grad, expected_grad, [&](size_t i, double) {
      const size_t row = i / static_cast<size_t>(2 * width);
      const size_t column = i % static_cast<size_t>(2 * width);
      const auto half = static_cast<size_t>(width);
      const double grad = dy.data<float>()[row * half + column % half];
      const double other = gate_up.data<float>()[row * 2 * half + (column + half) % (2 * half)];
      return 14 * u * std::abs(grad * other);
    });
  }
}

TEST_P(FastKernels, AddAndSigmoidGrad) {
  for (const int64_t width : kWidths) {
    const Tensor a = random({width});
    const Tensor b = random({width});
    const Tensor actual = out({width});
    const Tensor expected = out({width});
    fast->add(a, b, actual);
    reference->add(a, b, expected);
    expect_same_bits(actual, expected);
    const Tensor in_place = copy(b);
    fast->add(a, in_place, in_place);
    expect_same_bits(in_place, expected);

    fast->scaled_sum(0.3, a, -1.7, b, actual);
    reference->scaled_sum(0.3, a, -1.7, b, expected);
    // Two coefficients and two products are rounded, then the sum.
    expect_within(actual, expected, [&](size_t i, double) {
      return 3 * u * (0.3 * std::abs(a.data<float>()[i]) + 1.7 * std::abs(b.data<float>()[i]));
    });

    const Tensor y = out({width});
    reference->sigmoid(a, y);
    fast->sigmoid_grad(y, b, actual);
    reference->sigmoid_grad(y, b, expected);
    expect_relative(actual, expected, 4 * u);
  }
}

TEST_P(FastKernels, Clip) {
  for (const int64_t width : kWidths) {
    const Tensor x = random({width});
    const Tensor dy = random({width});
    const double limit = std::abs(x.data<float>()[0]);  // an element that is not outside
    const Tensor actual = out({width});
    const Tensor expected = out({width});
    fast->clip(limit, x, actual);
    reference->clip(limit, x, expected);
    expect_same_bits(actual, expected);
    fast->clip_grad(limit, x, dy, actual);
    reference->clip_grad(limit, x, dy, expected);
    expect_same_bits(actual, expected);
    const Tensor in_place = copy(x);
    fast->clip(limit, in_place, in_place);
    reference->clip(limit, x, expected);
    expect_same_bits(in_place, expected);
  }
}

// Two or three roundings of terms that are not larger than |a| + |b|, or than |dout| times that.
TEST_P(FastKernels, Blend) {
  for (const int64_t width : kWidths) {
    const Tensor a = random({width});
    const Tensor b = random({width});
    const Tensor dout = random({width});
    const Tensor g = out({width});
    reference->sigmoid(random({width}), g);
    const auto bound = [&](size_t i, double) {
      const double sum = std::abs(a.data<float>()[i]) + std::abs(b.data<float>()[i]);
      return 3 * u * sum * (1.0 + std::abs(dout.data<float>()[i]));
    };
    const Tensor actual = out({width});
    const Tensor expected = out({width});
    fast->blend(g, a, b, actual);
    reference->blend(g, a, b, expected);
    expect_within(actual, expected, bound);

    const Tensor actual_grads[] = {out({width}), out({width}), out({width})};
    const Tensor expected_grads[] = {out({width}), out({width}), out({width})};
    fast->blend_grad(g, a, b, dout, actual_grads[0], actual_grads[1], actual_grads[2]);
    reference->blend_grad(g, a, b, dout, expected_grads[0], expected_grads[1], expected_grads[2]);
    expect_within(actual_grads[0], expected_grads[0], bound);
    for (int i : {1, 2}) {
      expect_within(actual_grads[i], expected_grads[i],
                    [&](size_t j, double) { return 2 * u * std::abs(dout.data<float>()[j]); });
    }
  }
}

// rstd: half the error of the mean square. Gradients: elements stay below 5 and mean |g n| below 2, so the mean's error
// times n is below 5 x 2 kSumError and the rest below 100 u.
TEST_P(FastKernels, RmsNorm) {
  for (const int64_t width : kWidths) {
    const Tensor x = random({9, width});
    const Tensor w = random({width});
    const Tensor dy = random({9, width});
    const Tensor y[] = {out({9, width}), out({9, width})};
    const Tensor rstd[] = {out({9}), out({9})};
    const Tensor dx[] = {out({9, width}), out({9, width})};
    const Tensor start = random({width});
    const Tensor dw[] = {copy(start), copy(start)};
    for (const int side : {0, 1}) {
      const Kernels& kernels = side == 0 ? *fast : *reference;
      kernels.rms_norm(x, w, 1e-6, y[side], rstd[side]);
      kernels.rms_norm_input_grad(dy, x, w, rstd[side], dx[side]);
      kernels.rms_norm_weight_grad(dy, x, rstd[side], dw[side]);
    }
    expect_relative(rstd[0], rstd[1], kSumError / 2 + 3 * u);
    expect_relative(y[0], y[1], kSumError / 2 + 6 * u);
    const double largest = 1.0 / std::sqrt(1e-6);
    expect_within(dx[0], dx[1], [&](size_t i, double) {
      const double inverse = rstd[1].data<float>()[i / static_cast<size_t>(width)];
      return std::min(inverse, largest) * (20 * kSumError + 100 * u);
    });
    expect_absolute(dw[0], dw[1], 9 * 15 * (kSumError + 10 * u));  // 9 rows, terms below 15
  }
}

TEST_P(FastKernels, LayerNorm) {
  for (const int64_t width : kWidths) {
    if (width == 1) continue;  // the deviation is 0: nothing but the rounding of the mean
    const Tensor x = random({9, width});
    const Tensor w = random({width});
    const Tensor b = random({width});
    const Tensor dy = random({9, width});
    const Tensor y[] = {out({9, width}), out({9, width})};
    const Tensor mean[] = {out({9}), out({9})};
    const Tensor rstd[] = {out({9}), out({9})};
    const Tensor dx[] = {out({9, width}), out({9, width})};
    const Tensor start = random({width});
    const Tensor dw[] = {copy(start), copy(start)};
    const Tensor db[] = {copy(start), copy(start)};
    for (const int side : {0, 1}) {
      const Kernels& kernels = side == 0 ? *fast : *reference;
      kernels.layer_norm(x, w, b, 1e-5, y[side], mean[side], rstd[side]);
      kernels.layer_norm_input_grad(dy, x, w, mean[side], rstd[side], dx[side]);
      kernels.layer_norm_weight_grad(dy, x, mean[side], rstd[side], dw[side], db[side]);
    }
    expect_absolute(mean[0], mean[1], 4 * kSumError);
    // A mean off by kSumError moves rstd by that much of rstd^3 mean|x|; rows of 3 have rstd up to 10.
    expect_relative(rstd[0], rstd[1], 10 * kSumError);
    expect_absolute(y[0], y[1], 60 * kSumError);
    expect_absolute(dx[0], dx[1], 1000 * kSumError);
    expect_absolute(dw[0], dw[1], 9 * 60 * kSumError);
    expect_absolute(db[0], db[1], 9 * 40 * u);
  }
}

// exp 2u and its argument's rounding, |x - max| u < 30 u; then the sum.
TEST_P(FastKernels, Softmax) {
  for (const int64_t width : kWidths) {
    const Tensor x = random({5, width}, 3.0);
    const Tensor dy = random({5, width});
    const Tensor y[] = {out({5, width}), out({5, width})};
    fast->softmax(x, y[0]);
    reference->softmax(x, y[1]);
    expect_relative(y[0], y[1], kSumError + 36 * u);
    const Tensor dx[] = {out({5, width}), out({5, width})};
    fast->softmax_grad(y[1], dy, dx[0]);
    reference->softmax_grad(y[1], dy, dx[1]);
    expect_absolute(dx[0], dx[1], 5 * kSumError + 10 * u);
  }
}

TEST_P(FastKernels, SoftmaxOfMaskedScores) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const Tensor x = test::tensor_of(arena, DType::f32, {1, 4}, {-inf, 2.0, -inf, 2.0});
  const Tensor y = out({1, 4});
  fast->softmax(x, y);
  fast->synchronize();
  EXPECT_EQ(test::values_of(y), (std::vector<double>{0.0, 0.5, 0.0, 0.5}));
}

TEST_P(FastKernels, CrossEntropy) {
  for (const int64_t vocabulary : {int64_t{2}, int64_t{7}, int64_t{1000}, int64_t{33'333}}) {
    const Tensor logits = random({4, vocabulary}, 4.0);
    const Tensor targets = ints({0, -1, static_cast<double>(vocabulary - 1), 1});
    const Tensor losses[] = {out({4}), out({4})};
    fast->cross_entropy(logits, targets, losses[0]);
    reference->cross_entropy(logits, targets, losses[1]);
    fast->synchronize();
    EXPECT_EQ(losses[0].data<float>()[1], 0.0F);
    // The logarithm's error is the sum's relative error; the loss itself, below 64, is rounded.
    expect_absolute(losses[0], losses[1], kSumError + 36 * u + 64 * u);

    const Tensor grads[] = {out({4, vocabulary}), out({4, vocabulary})};
    fast->cross_entropy_grad(logits, targets, 0.25, grads[0]);
    reference->cross_entropy_grad(logits, targets, 0.25, grads[1]);
    expect_absolute(grads[0], grads[1], 0.25 * (kSumError + 36 * u));
    const Tensor in_place = copy(logits).reshape({4, vocabulary});
    fast->cross_entropy_grad(in_place, targets, 0.25, in_place);
    expect_same_bits(in_place, grads[0]);
  }
}

// Every constant and operation loses u. m and v: 4u of their two positive or bounded terms; value: u of itself and 12u
// of the step, which is below learning_rate (|m| / sqrt(v) + decay |value|) < 10 learning_rate here.
TEST_P(FastKernels, AdamW) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{19}, int64_t{1000}}) {
    const Tensor grad = random({count});
    const Tensor start = random({count});
    const Tensor start_m = random({count}, 0.1);
    const Tensor start_v = out({count});
    for (int64_t i = 0; i < count; ++i) {
      const float g = grad.data<float>()[i];
      start_v.data<float>()[i] = 0.05F + 0.1F * g * g;
    }
    const Tensor value[] = {copy(start), copy(start)};
    const Tensor m[] = {copy(start_m), copy(start_m)};
    const Tensor v[] = {copy(start_v), copy(start_v)};
    const AdamWStep step{.learning_rate = 3e-3,
                         .beta1 = 0.9,
                         .beta2 = 0.95,
                         .epsilon = 1e-8,
                         .weight_decay = 0.1,
                         .grad_scale = 0.7,
                         .step = 3};
    fast->adamw(step, value[0], grad, m[0], v[0]);
    reference->adamw(step, value[1], grad, m[1], v[1]);
    expect_absolute(m[0], m[1], 4 * u);
    expect_relative(v[0], v[1], 6 * u);
    expect_within(value[0], value[1],
                  [&](size_t, double expected) { return 2 * u * std::abs(expected) + 12 * u * 10 * 3e-3; });
    if (count > 0) {
      EXPECT_GT(std::abs(value[0].data<float>()[0] - start.data<float>()[0]), 1e-5);
    }
  }
}

TEST_P(FastKernels, SumSquares) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{29}, int64_t{100'003}}) {
    const Tensor x = random({count});
    const double expected = reference->sum_squares(x);
    EXPECT_NEAR(fast->sum_squares(x), expected, 1e-11 * expected);  // 1e5 additions of 2^-53 each
  }
  const Tensor large = test::tensor_of(arena, DType::f32, {2}, {1e30, 1e30});
  EXPECT_NEAR(fast->sum_squares(large), 2e60, 1e54);
}

// What a row becomes depends neither on its place in memory nor on the rows around it.
TEST_P(FastKernels, RowsAreIndependent) {
  constexpr int64_t kRows = 6;
  constexpr int64_t kWidth = 131;
  const Tensor x = random({kRows, kWidth});
  const Tensor w = random({kWidth});
  const Tensor all = out({kRows, kWidth});
  const Tensor one = out({1, kWidth});
  const Tensor rstd = out({kRows});
  const auto check = [&](const std::function<void(const Tensor&, const Tensor&)>& kernel) {
    kernel(x, all);
    for (int64_t t = 0; t < kRows; ++t) {
      kernel(x.rows(t, 1), one);
      expect_same_bits(one, all.rows(t, 1));
    }
  };
  check([&](const Tensor& in, const Tensor& result) { fast->softmax(in, result); });
  check([&](const Tensor& in, const Tensor& result) { fast->sigmoid(in, result); });
  check([&](const Tensor& in, const Tensor& result) { fast->activation(Activation::gelu, in, result); });
  check([&](const Tensor& in, const Tensor& result) { fast->rms_norm(in, w, 1e-6, result, rstd.rows(0, in.dim(0))); });
}

TEST_P(FastKernels, CopiesAreTheSameBytes) {
  const Tensor x = random({7, 33});
  const Tensor y = out({7, 33});
  fast->copy(x, y);
  expect_same_bits(y, x);
  fast->copy(out({0, 33}), out({0, 33}));
}

// A clock can be started again, and time does not run backwards.
TEST_P(FastKernels, Clocks) {
  const std::unique_ptr<DeviceClock> clock = fast->make_clock();
  const Tensor x = random({100});
  for (int i = 0; i < 2; ++i) {
    clock->start();
    fast->sigmoid(x, x);
    EXPECT_GE(clock->stop_ms(), 0.0);
  }
}

TEST_P(FastKernels, EmptyBatches) {
  const Tensor none = out({0, 8});
  const Tensor w = random({8});
  fast->softmax(none, none);
  fast->rms_norm(none, w, 1e-6, none, out({0}));
  fast->swiglu(out({0, 16}), none);
  fast->activation(Activation::silu, none, none);
  fast->gather_rows(w.reshape({1, 8}), ints({}), Tensor(), none);
  fast->sum_rows(w.reshape({1, 8}), ints({0}), ints({}), Tensor(), none);
}

INSTANTIATE_TEST_SUITE_P(BackEnds, FastKernels, test::each_fast_back_end(), test::name_of_back_end);

}  // namespace
}  // namespace cadre::fast_kernels_test
