// SPDX-License-Identifier: Apache-2.0
// Two gates, one behind the other (Jordan and Jacobs 1994; Shazeer et al. 2017, appendix B): a coarse one over groups of
// neighbouring experts and a fine one within each group, as one vector of logits whose softmax is their product.
#pragma once

#include "layers/tensor/tensor.hpp"

namespace cadre {

// With G groups, coarse [T,G]: logits [T,E] become coarse_g + log softmax within the group. within [T,E] receives that
// softmax.
void join_levels(const Tensor& coarse, const Tensor& logits, const Tensor& within);
// dlogits [T,E], of the joined logits, becomes that of the fine ones; d_coarse [T,G] is overwritten.
void join_levels_grad(const Tensor& within, const Tensor& dlogits, const Tensor& d_coarse);

}  // namespace cadre
