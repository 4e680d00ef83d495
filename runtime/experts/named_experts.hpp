// SPDX-License-Identifier: Apache-2.0
// Keys of a model that name experts by their ids, which change when experts come or go.
#pragma once

#include "layers/model/config.hpp"

namespace cadre {

// Throws where such a key is set that cannot be carried over.
void check_unnamed(const ModelConfig& model);

}  // namespace cadre
