// SPDX-License-Identifier: Apache-2.0
// Whether the routed experts of a layer are all alike.
#pragma once

#include <cstdint>

#include "layers/nn/ffn.hpp"

namespace cadre {

// typed: three kinds that take turns by global id, named for what each does most: gate experts (SwiGLU, as `same`), up experts
// (down(gelu(up x)) of twice the width) and down experts (the same of half the width).
enum class ExpertKinds : uint8_t { same, typed };

// What expert `id` is made of; `usual` is SwiGLU where kinds are typed, and its width even.
FfnOptions options_of_expert(const FfnOptions& usual, ExpertKinds kinds, int id);

// Elements of its weights.
int64_t weights_of_expert(const FfnOptions& usual, ExpertKinds kinds, int id);

}  // namespace cadre
