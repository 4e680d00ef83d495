// SPDX-License-Identifier: Apache-2.0
// From the scores of the chosen experts to the weights of their outputs (spec of DeepSeek-V3, gate steps 7 to 9).
#pragma once

#include <cstdint>

#include "layers/tensor/tensor.hpp"

namespace cadre {

enum class GateKind : uint8_t {
  score,
  // Every chosen expert counts the same: 1, or 1 / number of chosen when renormalised. The choice has no derivative; the
  // gradient passes straight through, as if the weight were the score (times the same 1 / number).
  binary,
};

struct WeightOptions {
  // Divide by the sum over the chosen, plus 1e-20. A token that a dynamic K left one expert then gives it all the weight, as
  // much as its other tokens share out, and learns nothing about the choice.
  bool renormalise = true;
  double scale = 1.0;  // applied last
  GateKind gate = GateKind::score;
  // 0: one level. Else, with g the group of e among so many equal ones and S_g the sum of the scores of all its experts,
  // renormalised at both levels: w_e = S_g / (sum of S over the groups with a chosen expert) s_e / (sum over the chosen of g).
  int groups = 0;
  // Equal parts of a token's slots that share out the weight each for themselves; only the last one is scaled.
  int parts = 1;
};

// weights[T,K] of ids[T,K] (i32, -1 gives 0) from scores[T,E].
void routing_weights(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& weights);

// dscores[T,E], all of it: the gradient through routing_weights of dweights[T,K].
void routing_weights_grad(const WeightOptions& options, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
                          const Tensor& dscores);

}  // namespace cadre
