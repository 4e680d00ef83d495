// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "runtime/config/run_config.hpp"

namespace cadre {

// Throws ErrorKind::input when a [from_step.N] section changes the name or the shape of a weight. Allocates nothing.
void check_stage_shapes(const RunConfig& config);

}  // namespace cadre
