// SPDX-License-Identifier: Apache-2.0
// Measures what the ranks of a job do, for the planner: a few layers of the model of a configuration run forward and backward on
// all ranks at once, with their exchanges, and the time of each phase is divided by its work.
#pragma once

#include <vector>

#include "comm/group/communicator.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/plan/machine.hpp"

namespace cadre {

// Collective over `world`; the same on all ranks. Products of experts are measured with the rows of a micro-batch of the
// configuration / each of `row_divisors`, the last of which measures everything else. Takes the memory of the layers, and gives it
// back. Throws where the model cannot run on these ranks.
Machine measure_machine(const Communicator& world, const RunConfig& config, const std::vector<int>& row_divisors = {1});

}  // namespace cadre
