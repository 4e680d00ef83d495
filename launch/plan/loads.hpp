// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "runtime/config/run_config.hpp"
#include "runtime/placement/plan.hpp"
#include "runtime/plan/step_shape.hpp"

namespace cadre {

// How busy each expert was: of the folder of a run, its metrics.jsonl, or a JSON file of loads. Throws ErrorKind::input where
// that has none.
ExpertLoads read_loads(const std::string& argument);

// The same as factors of a run whose experts are cut over `group` ranks; an empty argument: even loads.
LoadSkew skew_of_loads(const std::string& argument, const RunConfig& config, int group, int ranks_a_host);

}  // namespace cadre
