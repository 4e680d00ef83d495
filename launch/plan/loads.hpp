// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "layers/model/config.hpp"
#include "runtime/placement/plan.hpp"
#include "runtime/plan/step_shape.hpp"

namespace cadre {

// How busy each expert was: of the folder of a run, its metrics.jsonl, or a JSON file of loads. Throws ErrorKind::input where
// that has none.
ExpertLoads read_loads(const std::string& argument);

// The same as factors of a model whose experts are cut over `group` ranks; an empty argument: even loads.
LoadSkew skew_of_loads(const std::string& argument, const ModelConfig& model, int group);

}  // namespace cadre
