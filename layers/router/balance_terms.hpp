// SPDX-License-Identifier: Apache-2.0
// What balance losses are made of: functions of one number for each expert or device, with their derivatives.
#pragma once

#include <span>
#include <vector>

#include "layers/router/options.hpp"

namespace cadre {

// A value, and its derivative with respect to each number it was made from.
struct Term {
  double value = 0.0;
  std::vector<double> slope;
};

// KL(p || uniform) = sum_i p_i log(n p_i), in nats; p_i >= 0.
Term kl_to_uniform(std::span<const double> shares);

Term variance_of(std::span<const double> loads, Variance variance);
// The same divided by the square of the mean. Zero when all numbers are.
Term squared_cv(std::span<const double> loads, Variance variance);

// factor sum_i fixed_i p_i, whose derivative is factor fixed_i.
Term weighted_sum(double factor, std::span<const double> fixed, std::span<const double> numbers);

// [E], the device of each expert.
std::vector<int> devices_of(int num_experts, int devices, DeviceLayout layout);

// The sum of the numbers of each device, and back from the derivative by a sum to that by each number.
std::vector<double> by_device(std::span<const double> numbers, int devices,
                              DeviceLayout layout = DeviceLayout::contiguous);
std::vector<double> by_expert(std::span<const double> device_slopes, int num_experts,
                              DeviceLayout layout = DeviceLayout::contiguous);

}  // namespace cadre
