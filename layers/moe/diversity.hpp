// SPDX-License-Identifier: Apache-2.0
// A loss against experts that say the same: the mean over tokens of the mean cosine of the outputs of two of the token's
// experts. For the n experts of a token, with u_i = y_i / |y_i|,
//   L_t = 2 / (n (n - 1)) sum_{i<j} u_i . u_j,   dL_t/dy_i = 2 / (n (n - 1)) (v - (v . u_i) u_i) / |y_i|,  v = sum_{j!=i} u_j
// and 0 where n < 2. An output of norm 0 has cosine 0 with every other and no gradient.
#pragma once

#include <cstdint>
#include <span>

#include "layers/tensor/tensor.hpp"

namespace cadre {

// The sum over tokens of L_t. Those of token t are rows offsets[t] .. offsets[t+1] of outputs [S,H].
double diversity_loss(const Tensor& outputs, std::span<const int32_t> offsets);

// grads [S,H]: scale times the derivative by each output.
void diversity_grad(double scale, const Tensor& outputs, std::span<const int32_t> offsets, const Tensor& grads);

}  // namespace cadre
