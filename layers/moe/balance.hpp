// SPDX-License-Identifier: Apache-2.0
// How evenly the experts are used: counts, the Switch balance loss, the bias update without auxiliary loss.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {

// How often each expert occurs in ids (i32, any shape, -1 not counted).
std::vector<int64_t> count_experts(const Tensor& ids, int num_experts);

// The balance loss of Switch Transformers (Fedus et al. 2021, eq. 4 to 6) for top-k, over a micro-batch of all ranks:
//   L = alpha E sum_e f_e P_e,   f_e = count_e / sum of counts,   P_e = mean over tokens of p_e
// where p is the scores of a token divided by their sum. f is held constant: the gradient flows through P.
struct BalanceLoss {
  double alpha = 0.0;
  double token_scale = 1.0;  // 1 / tokens of the global batch: the losses of its micro-batches add up to a mean
  std::span<const int64_t> global_counts;  // [E], over all ranks

  // This rank's share of L: the shares of all ranks add up to it. scores [T,E].
  double value(const Tensor& scores) const;
  // Adds dL/dscores to dscores [T,E].
  void add_grad(const Tensor& scores, const Tensor& dscores) const;

 private:
  std::vector<double> slopes() const;  // dL/dp_te, by expert
};

// b_e += rate sign(mean count - count_e), sign(0) = 0 (Wang et al. 2024, algorithm 1).
void update_selection_bias(std::span<const int64_t> global_counts, double rate, const Tensor& bias);

}  // namespace cadre
