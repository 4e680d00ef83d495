// SPDX-License-Identifier: Apache-2.0
#include "layers/router/local_losses.hpp"

#include <algorithm>
#include <cmath>

#include "layers/router/loss_sums.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

template <class T>
double log_sum_exp(const T* row, int64_t width) {
  const double largest = *std::max_element(row, row + width);
  double sum = 0.0;
  for (int64_t e = 0; e < width; ++e) sum += std::exp(double{row[e]} - largest);
  return std::isfinite(largest) ? largest + std::log(sum) : 0.0;  // no expert is alive
}

}  // namespace

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

}  // namespace cadre
