// SPDX-License-Identifier: Apache-2.0
// Compares an analytic gradient with central differences of a loss, in fp64.
//
// The difference quotient (loss(x + h) - loss(x - h)) / 2h is wrong by h^2 f'''/6 (truncation) and by about
// 1e-16 |loss| / h (rounding). With h = 1e-5 and values of order one both are near 1e-10, so the norm-wise relative
// error of a right gradient stays below kGradientTolerance with two orders to spare, and a wrong term is far above it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "layers/tensor/tensor.hpp"

namespace cadre::test {

inline constexpr double kGradientTolerance = 1e-7;

struct GradientError {
  double relative = 0.0;       // |analytic - numeric| / |numeric|, Euclidean norms over the checked elements
  double numeric_norm = 0.0;   // near zero: the check proves nothing
  int64_t worst_element = -1;  // the one that differs most
  double worst_analytic = 0.0;
  double worst_numeric = 0.0;
};

// `loss()` computes the loss from scratch; `value` is f64 memory that it reads, `analytic` its gradient, in the same
// shape. Checks about `max_elements` elements, evenly spread.
template <class Loss>
GradientError gradient_error(Loss&& loss, const Tensor& value, const Tensor& analytic, int64_t max_elements = 200) {
  constexpr double kStep = 1e-5;
  auto* x = value.data<double>();
  const auto* gradient = analytic.data<double>();
  const int64_t stride = std::max<int64_t>(1, value.numel() / max_elements);
  GradientError error;
  double difference_squares = 0.0;
  double numeric_squares = 0.0;
  double worst = -1.0;
  for (int64_t i = 0; i < value.numel(); i += stride) {
    const double original = x[i];
    x[i] = original + kStep;
    const double above = loss();
    x[i] = original - kStep;
    const double below = loss();
    x[i] = original;
    const double numeric = (above - below) / (2.0 * kStep);
    const double difference = std::abs(gradient[i] - numeric);
    difference_squares += difference * difference;
    numeric_squares += numeric * numeric;
    if (difference > worst || std::isnan(difference)) {
      worst = difference;
      error.worst_element = i;
      error.worst_analytic = gradient[i];
      error.worst_numeric = numeric;
    }
  }
  error.numeric_norm = std::sqrt(numeric_squares);
  error.relative = std::sqrt(difference_squares) / error.numeric_norm;
  return error;
}

// Expects that `analytic` is the gradient of `loss` with respect to `value`, and that it is not trivially zero.
template <class Loss>
void expect_gradient(const std::string& what, Loss&& loss, const Tensor& value, const Tensor& analytic,
                     double tolerance = kGradientTolerance) {
  ASSERT_TRUE(value.same_shape(analytic)) << what << ": " << value.describe() << " and " << analytic.describe();
  const GradientError error = gradient_error(loss, value, analytic);
  EXPECT_GT(error.numeric_norm, 1e-3) << what << ": the gradient vanishes, nothing is checked";
  // Negated so that a NaN fails.
  EXPECT_TRUE(error.relative < tolerance)
      << what << ": relative error " << error.relative << ", worst at element " << error.worst_element << ": analytic "
      << error.worst_analytic << ", numeric " << error.worst_numeric;
}

}  // namespace cadre::test
