// SPDX-License-Identifier: Apache-2.0
// What the routed experts of a layer are made of.
#pragma once

#include <cstdint>

#include "layers/nn/ffn.hpp"

namespace cadre {

// same: a feed-forward network each. typed: three kinds of them that take turns by global id, named for what each does
// most: gate experts (SwiGLU, as `same`), up experts (down(gelu(up x)) of twice the width) and down experts (the same of
// half the width). mixture: each is a mixture of such networks itself (Shazeer et al. 2017, appendix B).
enum class ExpertKinds : uint8_t { same, typed, mixture };

struct ExpertOptions {
  FfnOptions ffn = {};  // SwiGLU where kinds are typed, and its width even
  ExpertKinds kinds = ExpertKinds::same;
  int inner_experts = 0;  // of one that is a mixture
  int inner_top_k = 0;
};

// The network of expert `id`, or one of those of a mixture.
FfnOptions ffn_of_expert(const ExpertOptions& options, int id);

// Elements of the weights of expert `id`, and of those that one row meets.
struct ExpertWeights {
  int64_t total = 0;
  int64_t active = 0;
};
ExpertWeights weights_of_expert(const ExpertOptions& options, int id);

}  // namespace cadre
