// SPDX-License-Identifier: Apache-2.0
// What balance losses are made of: functions of one number for each expert or device, with their derivatives.
#pragma once

#include <span>
#include <vector>

namespace cadre {

// A value, and its derivative with respect to each number it was made from.
struct Term {
  double value = 0.0;
  std::vector<double> slope;
};

// KL(p || uniform) = sum_i p_i log(n p_i), in nats; p_i >= 0.
Term kl_to_uniform(std::span<const double> shares);

// The variance divided by the square of the mean. population divides the sum of squares by n, unbiased by n - 1. Zero when
// all numbers are.
enum class Variance { population, unbiased };
Term squared_cv(std::span<const double> loads, Variance variance);

// factor sum_i fixed_i p_i, whose derivative is factor fixed_i.
Term weighted_sum(double factor, std::span<const double> fixed, std::span<const double> numbers);

// Of neighbouring experts, cut as ExpertMap::contiguous cuts them: the sum of each of `devices` parts, and back from the
// derivative by a sum to that by each number.
std::vector<double> by_device(std::span<const double> numbers, int devices);
std::vector<double> by_expert(std::span<const double> device_slopes, int num_experts);

}  // namespace cadre
