// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/balance_terms.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "layers/moe/eligibility.hpp"

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

Term squared_cv(std::span<const double> loads, Variance variance) {
  const auto count = static_cast<double>(loads.size());
  const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / count;
  const double divisor = variance == Variance::population ? count : count - 1.0;
  Term term;
  term.slope.assign(loads.size(), 0.0);
  if (mean == 0.0 || divisor == 0.0) return term;
  double squares = 0.0;
  for (const double load : loads) squares += (load - mean) * (load - mean);
  term.value = squares / divisor / (mean * mean);
  std::ranges::transform(loads, term.slope.begin(), [&](double load) {
    return 2.0 * (load - mean) / (divisor * mean * mean) - 2.0 * term.value / (mean * count);
  });
  return term;
}

Term weighted_sum(double factor, std::span<const double> fixed, std::span<const double> numbers) {
  Term term;
  term.value = factor * std::inner_product(fixed.begin(), fixed.end(), numbers.begin(), 0.0);
  for (const double weight : fixed) term.slope.push_back(factor * weight);
  return term;
}

std::vector<double> by_device(std::span<const double> numbers, int devices) {
  std::vector<double> sums;
  for (int d = 0; d < devices; ++d) {
    const auto [first, count] = expert_group(static_cast<int64_t>(numbers.size()), devices, d);
    const auto begin = numbers.begin() + first;
    sums.push_back(std::accumulate(begin, begin + count, 0.0));
  }
  return sums;
}

std::vector<double> by_expert(std::span<const double> device_slopes, int num_experts) {
  std::vector<double> slopes;
  const auto devices = static_cast<int>(device_slopes.size());
  for (int d = 0; d < devices; ++d) {
    slopes.insert(slopes.end(), static_cast<size_t>(expert_group(num_experts, devices, d).count), device_slopes[d]);
  }
  return slopes;
}

}  // namespace cadre
