// SPDX-License-Identifier: Apache-2.0
// The program that a configuration asks for.
#pragma once

#include <string>
#include <vector>

#include "runtime/config/run_config.hpp"
#include "runtime/schedule/program.hpp"

namespace cadre {

// What parallel.schedule may be chosen from: schedules that can run with this pipeline, these micro-batches and layers.
std::vector<std::string> possible_schedules(const RunConfig& config);

// The program of the step that `config` describes. With parallel.schedule = auto the one of those possible that keeps most
// micro-batches at once, for plans of memory. Throws when the model has fewer layers than it has stages.
Program program_of(const RunConfig& config);

}  // namespace cadre
