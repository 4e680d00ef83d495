// SPDX-License-Identifier: Apache-2.0
// What a job says of itself before it begins: who runs where, over what, bound to which cores.
#pragma once

#include "comm/group/communicator.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// Printed by rank 0. Collective over `world`.
void print_banner(const Communicator& world, const RunConfig& config);

}  // namespace cadre
