// SPDX-License-Identifier: Apache-2.0
// What an adapter adds to a product with a fixed weight, and its gradients: with s the scale and d dropout,
//   h = d(x) a^T,  y += s h b^T,  dh = s dy b,  db = s dy^T h,  da = dh^T d(x),  dx += d'(dh a).
// h is small and is computed again for the gradient of b.
#pragma once

#include <string>

#include "layers/nn/linear.hpp"

namespace cadre {

// x [T,K], y [T,N]: adds to the columns of y that belong to the rows of the addition.
void add_low_rank(Context& ctx, const LowRank& added, const DropoutRows& dropout, const Tensor& x, const Tensor& y);
// dy [T,N], dx [T,K]: adds to dx. Returns dh [T,rank], which the weight gradient needs.
Tensor add_low_rank_input_grad(Context& ctx, const LowRank& added, const DropoutRows& dropout, const Tensor& dy,
                               const Tensor& dx);
// Adds to the gradients of a and b.
void low_rank_weight_grad(Context& ctx, LowRank& added, const DropoutRows& dropout, const Tensor& x, const Tensor& dh,
                          const Tensor& dy);

// y = x / (1 - rate) where a number drawn for (seed, step, name, row, column) is at least `rate`, else 0 (Srivastava et al.
// 2014); the numbers are multiples of 2^-16. x, y [T,K]; y may be x.
void drop_elements(const Kernels& kernels, const DropoutRows& dropout, double rate, const std::string& name,
                   const Tensor& x, const Tensor& y);

}  // namespace cadre
