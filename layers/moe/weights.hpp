// SPDX-License-Identifier: Apache-2.0
// From the scores of the chosen experts to the weights of their outputs (spec of DeepSeek-V3, gate steps 7 to 9).
#pragma once

#include "layers/tensor/tensor.hpp"

namespace cadre {

struct WeightOptions {
  bool renormalise = true;  // divide by the sum over the chosen, plus 1e-20
  double scale = 1.0;       // applied last
};

// weights[T,K] of ids[T,K] (i32, -1 gives 0) from scores[T,E].
void routing_weights(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& weights);

// dscores[T,E], all of it: the gradient through routing_weights of dweights[T,K].
void routing_weights_grad(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
                          const Tensor& dscores);

}  // namespace cadre
