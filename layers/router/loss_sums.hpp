// SPDX-License-Identifier: Apache-2.0
// Sums over this rank's tokens that balance losses are functions of, and the way back to single tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/router/routing.hpp"

namespace cadre {

// [E], sums over tokens of the scores [T,E], or of score / (sum of the token's scores + 1e-20).
std::vector<double> column_sums(const Tensor& scores, bool normalised);
// [E], sums of the routing weights.
std::vector<double> weight_sums(const Routing& routing);
// [devices], tokens with an expert on each device; device_of [E].
std::vector<double> device_visits(const Routing& routing, int devices, const std::vector<int>& device_of);

// Adds to dscores [T,E] the gradient of sum_te slope_e s_te / (sum of the token's scores); slopes are [E] for each
// `tokens_a_row` tokens in turn.
void add_prob_grad(const std::vector<double>& slopes, int64_t tokens_a_row, const Tensor& scores,
                   const Tensor& dscores);
// Adds slopes [E] to every row.
void add_row(const std::vector<double>& slopes, const Tensor& dscores);

}  // namespace cadre
