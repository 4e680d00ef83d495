// SPDX-License-Identifier: Apache-2.0
#include "layers/router/loss_terms.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "layers/router/eligibility.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

constexpr double kLossEpsilon = 1e-20;

template <class T>
double sum_of(const T* first, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += first[i];
  return sum;
}

template <class T>
double log_sum_exp(const T* row, int64_t width) {
  const double largest = *std::max_element(row, row + width);
  double sum = 0.0;
  for (int64_t e = 0; e < width; ++e) sum += std::exp(double{row[e]} - largest);
  return std::isfinite(largest) ? largest + std::log(sum) : 0.0;  // no expert is alive
}

// The places of a token's K-th and (K+1)-th largest noisy logit: what an expert must pass that is not among the first K,
// and one that is.
struct Thresholds {
  int64_t outside;
  int64_t inside;
};

template <class T>
Thresholds thresholds_of(const T* noisy, int64_t num_experts, int top_k, std::vector<int64_t>& order) {
  order.resize(static_cast<size_t>(num_experts));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [noisy](int64_t a, int64_t b) { return noisy[a] > noisy[b]; });
  return {order[static_cast<size_t>(top_k) - 1], order[static_cast<size_t>(top_k)]};
}

// Calls visit(i, threshold, z, deviation) for each element i of [T,E], with the element that is its threshold.
template <class T, class Visit>
void each_element(const Scorer::Saved& saved, int top_k, Visit&& visit) {
  const int64_t num_experts = saved.logits.dim(1);
  std::vector<int64_t> order;
  for (int64_t t = 0; t < saved.logits.dim(0); ++t) {
    const int64_t first = t * num_experts;
    const T* noisy = saved.logits.data<T>() + first;
    const Thresholds at = thresholds_of(noisy, num_experts, top_k, order);
    const auto end_of_best = order.begin() + top_k;
    for (auto place = order.begin(); place != order.end(); ++place) {
      const int64_t threshold = place < end_of_best ? at.inside : at.outside;
      const int64_t i = first + *place;
      const double deviation = softplus(saved.noise_input.data<T>()[i]);
      const double z = (double{saved.clean.data<T>()[i]} - double{noisy[threshold]}) / deviation;
      if (std::isfinite(z)) visit(i, first + threshold, z, deviation);
    }
  }
}

}  // namespace

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

std::vector<double> column_sums(const Tensor& scores, bool normalised) {
  const int64_t width = scores.dim(1);
  std::vector<double> sums(static_cast<size_t>(width), 0.0);
  with_element_type(scores, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < scores.dim(0); ++t) {
      const T* row = scores.data<T>() + t * width;
      const double factor = normalised ? 1.0 / (sum_of(row, width) + kLossEpsilon) : 1.0;
      for (int64_t e = 0; e < width; ++e) sums[static_cast<size_t>(e)] += factor * row[e];
    }
  });
  return sums;
}

std::vector<double> weight_sums(const Routing& routing) {
  std::vector<double> sums(static_cast<size_t>(routing.num_experts()), 0.0);
  with_element_type(routing.weights, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < routing.ids.numel(); ++i) {
      const int32_t expert = routing.ids.data<int32_t>()[i];
      if (expert >= 0) sums[static_cast<size_t>(expert)] += routing.weights.data<T>()[i];
    }
  });
  return sums;
}

std::vector<double> device_visits(const Routing& routing, int devices, const std::vector<int>& device_of) {
  std::vector<double> visits(static_cast<size_t>(devices), 0.0);
  std::vector<int64_t> last_token(visits.size(), -1);
  for (int64_t i = 0; i < routing.ids.numel(); ++i) {
    const int32_t expert = routing.ids.data<int32_t>()[i];
    if (expert < 0) continue;
    const auto d = static_cast<size_t>(device_of[static_cast<size_t>(expert)]);
    const int64_t token = i / routing.ids.dim(1);
    if (last_token[d] != token) ++visits[d];
    last_token[d] = token;
  }
  return visits;
}

// slopes [E] for all tokens, or [sequences, E]. p_e = s_e / S, so dL/ds_e = slope_e / S - sum_j slope_j s_j / S^2.
void add_prob_grad(const std::vector<double>& slopes, int64_t tokens_a_row, const Tensor& scores,
                   const Tensor& dscores) {
  with_element_type(scores, [&]<class T>(std::type_identity<T>) {
    const int64_t width = scores.dim(1);
    for (int64_t t = 0; t < scores.dim(0); ++t) {
      const double* slope = slopes.data() + t / tokens_a_row * width;
      const T* row = scores.data<T>() + t * width;
      T* drow = dscores.data<T>() + t * width;
      const double sum = sum_of(row, width) + kLossEpsilon;
      double weighted = 0.0;
      for (int64_t e = 0; e < width; ++e) weighted += slope[e] * row[e];
      for (int64_t e = 0; e < width; ++e) drow[e] += static_cast<T>(slope[e] / sum - weighted / (sum * sum));
    }
  });
}

void add_row(const std::vector<double>& slopes, const Tensor& dscores) {
  with_element_type(dscores, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < dscores.numel(); ++i) {
      dscores.data<T>()[i] += static_cast<T>(slopes[static_cast<size_t>(i) % slopes.size()]);
    }
  });
}

double sum_of_squares(const Tensor& logits) {
  double sum = 0.0;
  with_element_type(logits, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = 0; t < logits.dim(0); ++t) {
      const double z = log_sum_exp(logits.data<T>() + t * logits.dim(1), logits.dim(1));
      sum += z * z;
    }
  });
  return sum;
}

void add_z_grad(double scale, const Tensor& logits, const Tensor& dlogits) {
  with_element_type(logits, [&]<class T>(std::type_identity<T>) {
    const int64_t width = logits.dim(1);
    for (int64_t t = 0; t < logits.dim(0); ++t) {
      const T* row = logits.data<T>() + t * width;
      const double z = log_sum_exp(row, width);
      for (int64_t e = 0; e < width; ++e) {
        dlogits.data<T>()[t * width + e] += static_cast<T>(2.0 * scale * z * std::exp(double{row[e]} - z));
      }
    }
  });
}

std::vector<double> sequence_slopes(double scale, int64_t tokens_a_sequence, const Tensor& best, int num_experts) {
  const int64_t num_sequences = best.dim(0) / tokens_a_sequence;
  std::vector<double> slopes(static_cast<size_t>(num_sequences * num_experts), 0.0);
  const double factor = scale * num_experts / static_cast<double>(best.dim(1) * tokens_a_sequence);
  for (int64_t i = 0; i < best.numel(); ++i) {
    const int64_t sequence = i / best.dim(1) / tokens_a_sequence;
    slopes[static_cast<size_t>(sequence * num_experts + best.data<int32_t>()[i])] += factor;
  }
  return slopes;
}

double sequence_loss(const std::vector<double>& slopes, int64_t tokens_a_sequence, const Tensor& scores) {
  const int64_t num_experts = scores.dim(1);
  double loss = 0.0;
  for (int64_t first = 0; first < scores.dim(0); first += tokens_a_sequence) {
    const std::vector<double> sums = column_sums(scores.rows(first, tokens_a_sequence), /*normalised=*/true);
    const double* slope = slopes.data() + first / tokens_a_sequence * num_experts;
    for (size_t e = 0; e < sums.size(); ++e) loss += slope[e] * sums[e];
  }
  return loss;
}

int64_t tokens_a_sequence(const TokenFacts& tokens, const Routing& routing) {
  return tokens.sequence_length > 0 ? tokens.sequence_length : std::max<int64_t>(routing.num_tokens(), 1);
}

std::vector<double> noisy_load(const Scorer::Saved& saved, int top_k) {
  std::vector<double> load(static_cast<size_t>(saved.logits.dim(1)), 0.0);
  with_element_type(saved.logits, [&]<class T>(std::type_identity<T>) {
    each_element<T>(saved, top_k, [&](int64_t i, int64_t /*threshold*/, double z, double /*deviation*/) {
      load[static_cast<size_t>(i) % load.size()] += 0.5 * std::erfc(-z / std::numbers::sqrt2);
    });
  });
  return load;
}

void add_noisy_load_grad(const Scorer::Saved& saved, int top_k, const std::vector<double>& slopes,
                         const Scorer::Grads& grads) {
  constexpr double kDensity = 0.5 * std::numbers::inv_sqrtpi * std::numbers::sqrt2;  // 1 / sqrt(2 pi)
  with_element_type(saved.logits, [&]<class T>(std::type_identity<T>) {
    each_element<T>(saved, top_k, [&](int64_t i, int64_t threshold, double z, double deviation) {
      const double slope = slopes[static_cast<size_t>(i) % slopes.size()];
      const double by_clean = slope * kDensity * std::exp(-0.5 * z * z) / deviation;
      grads.clean.data<T>()[i] += static_cast<T>(by_clean);
      grads.logits.data<T>()[threshold] -= static_cast<T>(by_clean);
      grads.noise_std.data<T>()[i] -= static_cast<T>(by_clean * z);
    });
  });
}

}  // namespace cadre
