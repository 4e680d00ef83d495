// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "runtime/placement/plan.hpp"

namespace cadre {

// How busy each expert was: of the folder of a run, its metrics.jsonl, or a JSON file of loads. Throws ErrorKind::input where
// that has none.
ExpertLoads read_loads(const std::string& argument);

}  // namespace cadre
