// SPDX-License-Identifier: Apache-2.0
// The learning rate as a pure function of the step, so that a resumed run goes on with the same numbers.
#pragma once

#include <cstdint>

#include "runtime/config/run_config.hpp"

namespace cadre {

// Of step 0 <= step < steps; later steps keep the last rate. With t = step + 1 and W warm-up steps:
//   t <= W      peak t / W
//   constant    peak
//   linear      from peak at t = W to minimum at t = steps
//   cosine      the same ends, half a cosine between them (Loshchilov and Hutter 2017)
//   wsd         peak until t = steps - decay_steps, then linear to minimum (Hu et al. 2024)
double learning_rate_at(const TrainConfig& config, int64_t step);

}  // namespace cadre
