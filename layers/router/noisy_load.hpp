// SPDX-License-Identifier: Apache-2.0
// How likely noisy top-k (Shazeer et al. 2017, eq. 8 to 10) is to choose an expert for a token if the noise on that expert
// alone were drawn again: P(x,i) = Phi((clean_i - threshold_i) / deviation_i), where threshold_i is the K-th largest of the
// noisy logits of the others and the deviation is softplus(noise_input_i). A smooth count of the load.
#pragma once

#include <vector>

#include "layers/router/score.hpp"

namespace cadre {

// [E], the sums of P over this rank's tokens. Needs K < E.
std::vector<double> noisy_load(const Scorer::Saved& saved, int top_k);

// Adds slopes [E] times the derivative of these sums to the gradients of the noisy logits, the clean ones, and the
// deviation, all [T,E] and defined. The threshold is a noisy logit and gets its part.
void add_noisy_load_grad(const Scorer::Saved& saved, int top_k, const std::vector<double>& slopes,
                         const Scorer::Grads& grads);

}  // namespace cadre
