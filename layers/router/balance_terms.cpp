// SPDX-License-Identifier: Apache-2.0
#include "layers/router/balance_terms.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "layers/router/eligibility.hpp"

namespace cadre {

Term kl_to_uniform(std::span<const double> shares) {
  const auto count = static_cast<double>(shares.size());
  Term term;
  for (const double share : shares) {
    const double log_ratio = std::log(count * std::max(share, std::numeric_limits<double>::min()));
    term.value += share * log_ratio;
    term.slope.push_back(log_ratio + 1.0);
  }
  return term;
}

Term variance_of(std::span<const double> loads, Variance variance) {
  const auto count = static_cast<double>(loads.size());
  const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / count;
  const double divisor = variance == Variance::population ? count : count - 1.0;
  Term term;
  term.slope.assign(loads.size(), 0.0);
  if (divisor == 0.0) return term;
  for (const double load : loads) term.value += (load - mean) * (load - mean) / divisor;
  std::ranges::transform(loads, term.slope.begin(), [&](double load) { return 2.0 * (load - mean) / divisor; });
  return term;
}

Term squared_cv(std::span<const double> loads, Variance variance) {
  const auto count = static_cast<double>(loads.size());
  const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / count;
  Term term = variance_of(loads, variance);
  if (mean == 0.0) return {0.0, std::vector<double>(loads.size(), 0.0)};
  term.value /= mean * mean;
  for (double& slope : term.slope) slope = slope / (mean * mean) - 2.0 * term.value / (mean * count);
  return term;
}

Term weighted_sum(double factor, std::span<const double> fixed, std::span<const double> numbers) {
  Term term;
  term.value = factor * std::inner_product(fixed.begin(), fixed.end(), numbers.begin(), 0.0);
  for (const double weight : fixed) term.slope.push_back(factor * weight);
  return term;
}

std::vector<int> devices_of(int num_experts, int devices, DeviceLayout layout) {
  std::vector<int> device_of;
  if (layout == DeviceLayout::cyclic) {
    for (int expert = 0; expert < num_experts; ++expert) device_of.push_back(expert % devices);
    return device_of;
  }
  for (int d = 0; d < devices; ++d) {
    device_of.insert(device_of.end(), static_cast<size_t>(expert_group(num_experts, devices, d).count), d);
  }
  return device_of;
}

std::vector<double> by_device(std::span<const double> numbers, int devices, DeviceLayout layout) {
  const std::vector<int> device_of = devices_of(static_cast<int>(numbers.size()), devices, layout);
  std::vector<double> sums(static_cast<size_t>(devices), 0.0);
  for (size_t e = 0; e < numbers.size(); ++e) sums[static_cast<size_t>(device_of[e])] += numbers[e];
  return sums;
}

std::vector<double> by_expert(std::span<const double> device_slopes, int num_experts, DeviceLayout layout) {
  std::vector<double> slopes;
  for (const int device : devices_of(num_experts, static_cast<int>(device_slopes.size()), layout)) {
    slopes.push_back(device_slopes[static_cast<size_t>(device)]);
  }
  return slopes;
}

}  // namespace cadre
