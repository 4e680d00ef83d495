// SPDX-License-Identifier: Apache-2.0
// The schedules by name.
#pragma once

#include <string>
#include <vector>

#include "runtime/config/run_config.hpp"
#include "runtime/schedule/program.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre {

std::vector<std::string> schedule_names();
std::string schedule_summaries();  // one line each, for help

// The program of schedule `name` with its messages, or of the nearest one that can run on so many ranks and
// micro-batches; its `note` then says which and why. `ramp`: see pair(). Throws on an unknown name or a count below 1.
Program make_program(const std::string& name, int num_ranks, int num_micro_batches, int ramp = 1);

// Idle time of a rank by the formula of the schedule's authors. Exact where an overlapped pair costs as much as its two
// halves, a backward as its two halves, and there are micro-batches enough; else compare with Simulation::idle. Costs
// outside the formula's assumptions (weight gradients dearer than the rest) can make it negative: then 0.
double formula_bubble(const Program& program, const Cost& cost);
std::string formula_text(const Program& program);

// The program that a configuration asks for.

// What parallel.schedule may be chosen from: schedules that can run with this pipeline, these micro-batches and layers.
std::vector<std::string> possible_schedules(const RunConfig& config);

// The program of the step that `config` describes. With parallel.schedule = auto the one of those possible that keeps most
// micro-batches at once, for plans of memory. Throws when the model has fewer layers than it has stages.
Program program_of(const RunConfig& config);

}  // namespace cadre
