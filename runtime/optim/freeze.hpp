// SPDX-License-Identifier: Apache-2.0
// The freeze mask of a stage of progressive training, put on the parameters of a rank.
#pragma once

#include "layers/tensor/parameter.hpp"
#include "runtime/config/train_stages.hpp"

namespace cadre {

// Freezes what the stage does not train, and nothing else.
inline void freeze_all_but(Trained trained, const ParameterStore& store) {
  for (Parameter* parameter : store.parameters()) {
    parameter->frozen = !trains(trained, part_of_parameter(parameter->name()));
  }
}

}  // namespace cadre
