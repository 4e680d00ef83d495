// SPDX-License-Identifier: Apache-2.0
// What train.recompute says.
#pragma once

#include "layers/router/lane_context.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// none: nothing. activations: outputs of activation functions. The others these, and mla_up: queries, keys and values of latent
// attention from its latent vectors; attention: attention with its norm; layer, every:N: each layer, or each N-th one, from
// its input on. Throws on another text.
Recompute recompute_of(const TrainConfig& config);

}  // namespace cadre
