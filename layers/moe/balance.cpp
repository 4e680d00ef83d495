// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/balance.hpp"

#include <numeric>

namespace cadre {
namespace {

template <class T>
double loss_value(const Tensor& scores, const std::vector<double>& slopes) {
  const int64_t num_experts = scores.dim(1);
  double loss = 0.0;
  for (int64_t t = 0; t < scores.dim(0); ++t) {
    const T* score = scores.data<T>() + t * num_experts;
    double sum = 0.0;
    double weighted = 0.0;
    for (int64_t e = 0; e < num_experts; ++e) {
      sum += score[e];
      weighted += slopes[static_cast<size_t>(e)] * score[e];
    }
    if (sum > 0.0) loss += weighted / sum;
  }
  return loss;
}

// p_e = s_e / S, so dL/ds_e = slope_e / S - sum_j slope_j s_j / S^2.
template <class T>
void add_loss_grad(const Tensor& scores, const std::vector<double>& slopes, const Tensor& dscores) {
  const int64_t num_experts = scores.dim(1);
  for (int64_t t = 0; t < scores.dim(0); ++t) {
    const T* score = scores.data<T>() + t * num_experts;
    T* dscore = dscores.data<T>() + t * num_experts;
    double sum = 0.0;
    double weighted = 0.0;
    for (int64_t e = 0; e < num_experts; ++e) {
      sum += score[e];
      weighted += slopes[static_cast<size_t>(e)] * score[e];
    }
    if (sum <= 0.0) continue;
    for (int64_t e = 0; e < num_experts; ++e) {
      dscore[e] += static_cast<T>(slopes[static_cast<size_t>(e)] / sum - weighted / (sum * sum));
    }
  }
}

template <class T>
void move_bias(std::span<const int64_t> counts, double rate, T* bias) {
  const auto num_experts = static_cast<int64_t>(counts.size());
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  for (size_t e = 0; e < counts.size(); ++e) {
    // Compared as integers, so that equal loads give exactly zero.
    const int64_t above_mean = counts[e] * num_experts - total;
    if (above_mean < 0) bias[e] += static_cast<T>(rate);
    if (above_mean > 0) bias[e] -= static_cast<T>(rate);
  }
}

}  // namespace

std::vector<int64_t> count_experts(const Tensor& ids, int num_experts) {
  std::vector<int64_t> counts(static_cast<size_t>(num_experts), 0);
  const int32_t* id = ids.data<int32_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    if (id[i] >= 0) ++counts[static_cast<size_t>(id[i])];
  }
  return counts;
}

std::vector<double> BalanceLoss::slopes() const {
  const auto total = static_cast<double>(std::accumulate(global_counts.begin(), global_counts.end(), int64_t{0}));
  const double factor = total > 0.0 ? alpha * static_cast<double>(global_counts.size()) * token_scale / total : 0.0;
  std::vector<double> slopes;
  slopes.reserve(global_counts.size());
  for (const int64_t count : global_counts) slopes.push_back(factor * static_cast<double>(count));
  return slopes;
}

double BalanceLoss::value(const Tensor& scores) const {
  return scores.dtype() == DType::f64 ? loss_value<double>(scores, slopes()) : loss_value<float>(scores, slopes());
}

void BalanceLoss::add_grad(const Tensor& scores, const Tensor& dscores) const {
  if (scores.dtype() == DType::f64) return add_loss_grad<double>(scores, slopes(), dscores);
  add_loss_grad<float>(scores, slopes(), dscores);
}

void update_selection_bias(std::span<const int64_t> global_counts, double rate, const Tensor& bias) {
  if (bias.dtype() == DType::f64) return move_bias(global_counts, rate, bias.data<double>());
  move_bias(global_counts, rate, bias.data<float>());
}

}  // namespace cadre
