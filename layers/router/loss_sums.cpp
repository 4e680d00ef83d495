// SPDX-License-Identifier: Apache-2.0
#include "layers/router/loss_sums.hpp"

#include <algorithm>

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

}  // namespace

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

}  // namespace cadre
