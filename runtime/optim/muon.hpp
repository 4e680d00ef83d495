// SPDX-License-Identifier: Apache-2.0
// Muon (Jordan et al. 2024) with the scales of Moonlight (Liu et al. 2025, arXiv 2502.16982): the momentum of a matrix, its
// singular values brought near 1, is the update. A matrix is a parameter of a file: parts of a fused one have updates of their own.
#pragma once

#include <cstddef>

#include "layers/kernels/kernels.hpp"
#include "layers/tensor/parameter.hpp"

namespace cadre {

struct MuonStep {
  double learning_rate;
  double momentum;
  double weight_decay;
  double grad_scale;  // multiplies the gradient first (clipping)
};

// Whether Muon updates the parameter: a trained matrix of at least two rows and columns that is neither embedding nor head.
bool is_muon_matrix(const Parameter& parameter);

// What muon_update needs for the largest part.
size_t muon_scratch_bytes(const Parameter& parameter);

// Of each part W [R,C] with gradient G and momentum M: M = momentum M + grad_scale G,
// O = newton_schulz(grad_scale G + momentum M), W -= learning_rate (0.2 sqrt(max(R,C)) O + weight_decay W). Products are of the
// precision of `kernels`. `scratch` lies in their memory.
void muon_update(const Kernels& kernels, const MuonStep& step, Parameter& parameter, const Tensor& momentum,
                 std::byte* scratch);

}  // namespace cadre
