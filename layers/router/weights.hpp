// SPDX-License-Identifier: Apache-2.0
// From the scores of the chosen experts to the weights of their outputs (spec of DeepSeek-V3, gate steps 7 to 9).
#pragma once

#include <cstdint>

#include "layers/router/options.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

// weights[T,K] of ids[T,K] (i32, -1 gives 0) from scores[T,E].
void routing_weights(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& weights);

// dscores[T,E], all of it: the gradient through routing_weights of dweights[T,K].
void routing_weights_grad(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
                          const Tensor& dscores);

}  // namespace cadre
