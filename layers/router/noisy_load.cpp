// SPDX-License-Identifier: Apache-2.0
#include "layers/router/noisy_load.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

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
